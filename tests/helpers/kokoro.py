"""A graph with Kokoro's inputs and outputs, small enough to be made on the spot."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper

from wavcube_plugins.synthetic.kokoro import ARPABET

LETTERS = ' ;:,.!?—…"()“”ˈˌː' + "".join(ARPABET)
FRAMES = 4  # of every token at speed 1


def build(path, *, durations=True, frames=FRAMES):
    """A graph that hums as long as Kokoro would speak: `frames` of 600 samples for each token, divided by the speed.

    The pitch of the hum in Hz is the first number of the style.
    """
    constants = {"frames": float(frames), "least": 1.0, "most": 50.0, "hop": 600.0, "zero": 0.0, "one": 1.0}
    constants |= {"turn": 2 * np.pi / 24000, "half": 0.5}
    initializers = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()]
    initializers.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    nodes = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "frames"], ["wanted"]),
        helper.make_node("Div", ["wanted", "speed"], ["stretched"]),
        helper.make_node("Round", ["stretched"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "least", "most"], ["durations"]),
        helper.make_node("ReduceSum", ["durations"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "hop"], ["samples"]),
        helper.make_node("Range", ["zero", "samples", "one"], ["time"]),
        helper.make_node("Gather", ["style", "first"], ["pitch"], axis=1),
        helper.make_node("Squeeze", ["pitch"], ["hertz"]),
        helper.make_node("Mul", ["time", "hertz"], ["cycles"]),
        helper.make_node("Mul", ["cycles", "turn"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["sine"]),
        helper.make_node("Mul", ["sine", "half"], ["audio"]),
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "n"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 256]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("audio", "durations")]
    graph = helper.make_graph(nodes, "hum", inputs, outputs if durations else outputs[:1], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def build_folder(folder, **pitches):
    """A folder of weights as Kokoro's, with a voice of each name that hums at that pitch in Hz."""
    folder.mkdir(exist_ok=True)
    build(folder / "model.onnx")
    (folder / "vocab.json").write_text(json.dumps({"vocab": {c: i + 1 for i, c in enumerate(LETTERS)}}))
    (folder / "voices").mkdir()
    for name, pitch in pitches.items():
        np.full((510, 256), pitch, np.float32).tofile(folder / "voices" / f"{name}.bin")
    return folder
