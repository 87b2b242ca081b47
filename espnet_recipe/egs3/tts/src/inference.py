"""What the stage `infer` writes."""


def build_output(data, model_output, idx):
    """Return the waveform of an utterance, and its text for scoring."""
    return {"utt_id": data["utt_id"], "wav": model_output["wav"].cpu().numpy(), "text": data["text"]}
