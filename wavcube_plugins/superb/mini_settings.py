"""The settings of the mini SUPERB: what differs from the protocol, so that every task trains in minutes."""

from __future__ import annotations

from collections.abc import Mapping

_EXPERT = "downstream_expert."
_SMALL_RNNS = {"dim": [256], "dropout": [0.1], "layer_norm": [False], "proj": [False], "sample_rate": [1]}
_NO_MASKS = {"specaug": None}
_SMALL_MASKS = {
    _EXPERT + "modelrc.rnn_layers": 1, _EXPERT + "modelrc.hidden_size": 192, _EXPERT + "modelrc.dropout": 0.0
}  # fmt: skip


def _steps(total: int, evaluations: int = 5, **more: object) -> dict[str, object]:
    interval = max(1, total // evaluations)
    runner = {
        "total_steps": total, "gradient_accumulate_steps": 1, "log_step": interval, "eval_step": interval,
        "save_step": interval,
    }  # fmt: skip
    return {f"runner.{key}": value for key, value in runner.items()} | more


def _rnns(section: str, width: int = 256) -> dict[str, object]:
    whole = {"total_rate": -1, "module": "LSTM", "bidirection": True, "sample_style": "concat", **_SMALL_RNNS}
    return {f"{_EXPERT}{section}.RNNs": whole | {"dim": [width]}, f"{_EXPERT}{section}.project_dim": width}


# Few steps on small batches, smaller recurrent layers, no masking; the rest is the protocol's.
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "pr": _steps(300, **{_EXPERT + "corpus.batch_size": 8, _EXPERT + "corpus.bucketing": False}),
    "asr": _steps(400, **_NO_MASKS, **_rnns("modelrc"), **{_EXPERT + "datarc.batch_size": 8}),
    "ks": _steps(300, **{_EXPERT + "datarc.batch_size": 16}),
    "qbe": {_EXPERT + "max_workers": 1},
    "sid": _steps(300),
    "asv": _steps(
        300,
        3,
        **{
            _EXPERT + "datarc.vad_config.min_sec": 8000,
            _EXPERT + "modelrc.input_dim": 128,
            _EXPERT + "modelrc.module_config.XVector.agg_dim": 256,
            "runner.eval_step": 10**9,
        },
    ),
    "sd": _steps(150, **{_EXPERT + "modelrc.hidden_size": 128}),
    "er": _steps(150, **{_EXPERT + "datarc.train_batch_size": 8}),
    "ic": _steps(300, **{_EXPERT + "datarc.train_batch_size": 16}),
    "sf": _steps(400, **_NO_MASKS, **_rnns("model"), **{_EXPERT + "corpus.batch_size": 8}),
    "se": _steps(150, 3, **_SMALL_MASKS),
    "ss": _steps(150, 3, **_SMALL_MASKS),
    # In so few steps the decoder's gates saturate before its output reaches the level of a log-mel spectrum, and it
    # learns the mean only; layer normalisation prevents that. A larger hop means fewer steps of its loop. The whole
    # band counts: up to the protocol's 7.6 kHz, vocoded recordings are themselves 16 dB away.
    "vc": _steps(
        200,
        1,
        **{
            _EXPERT + "modelrc.hidden_dim": 128,
            _EXPERT + "modelrc.lstmp_layernorm": True,
            _EXPERT + "datarc.train_batch_size": 4,
            _EXPERT + "datarc.fbank_config.n_shift": 512,
            _EXPERT + "datarc.fbank_config.fmin": 0,
            _EXPERT + "datarc.fbank_config.fmax": 12000,
            _EXPERT + "datarc.fbank_config.gl_iters": 16,
            "scheduler.num_warmup_steps": 20,
        },
    ),
}
RATES: Mapping[str, float] = {
    "pr": 1e-2, "asr": 2e-3, "ks": 3e-3, "sid": 3e-3, "asv": 1e-3, "sd": 3e-3, "er": 1e-3, "ic": 3e-3, "sf": 2e-3,
    "se": 2e-3, "ss": 2e-3, "vc": 2e-3,
}  # fmt: skip


def _shortened(task: str, settings: Mapping[str, object]) -> dict[str, object]:
    few = _steps(2, 1) if task != "qbe" else {}
    more: dict[str, object] = {
        "asr": {**_rnns("modelrc", 32), _EXPERT + "datarc.batch_size": 2, _EXPERT + "datarc.eval_batch_size": 1},
        "sf": {**_rnns("model", 32), _EXPERT + "corpus.batch_size": 2},
        "asv": {"runner.eval_step": 10**9, "runner.save_step": 1, _EXPERT + "modelrc.input_dim": 32,
                _EXPERT + "modelrc.module_config.XVector.agg_dim": 32},
        "se": {_EXPERT + "modelrc.hidden_size": 16},
        "ss": {_EXPERT + "modelrc.hidden_size": 16},
        "vc": {_EXPERT + "modelrc.hidden_dim": 32, _EXPERT + "datarc.fbank_config.gl_iters": 2,
               "scheduler.num_warmup_steps": 1},
    }.get(task, {})  # fmt: skip
    return {**settings, **few, **more}


SHORT_SETTINGS = {task: _shortened(task, settings) for task, settings in SETTINGS.items()}
