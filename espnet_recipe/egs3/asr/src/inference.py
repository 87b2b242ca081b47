"""What the stage `infer` writes."""


def build_output(data, model_output, idx):
    """Return the hypothesis and the reference of an utterance."""
    return {"utt_id": data["utt_id"], "hyp": model_output[0][0], "ref": data["text"]}
