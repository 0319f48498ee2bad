"""Results of a study that was never run: hand-made tables with known answers, for the tests of `analysis`."""

from __future__ import annotations

import numpy as np

from analysis.evidence.equal_flops import ANSWERS, PROSE
from analysis.tables.results import DLM, PARENT, Results, columns, pack

ITEMS = 90
ANSWER = 28.0  # tokens of an answer, and so forwards of the AR parent


def correct(accuracy: float, items: int = ITEMS, wrong_first: bool = True) -> np.ndarray:
    """Outcomes of which the first (or last) are wrong."""
    right = round(accuracy * items)
    made = np.r_[np.zeros(items - right, bool), np.ones(right, bool)]
    return made if wrong_first else made[::-1]


class Study:
    """Collects rows; `results` are the tables."""

    def __init__(self):
        self.rows: dict[str, list[dict]] = {}

    def add(self, table: str, **row) -> None:
        self.rows.setdefault(table, []).append(row)

    @property
    def results(self) -> Results:
        return Results.of_rows(self.rows)

    def point(self, sweep: str, point: str, seed: int = 0, state: str = "finished", label: str = "", **choices) -> str:
        """A point and its run; returns the run's id."""
        run = f"{sweep}/{point}/{seed}"
        error = "ValueError: no such thing" if state == "failed" else None
        self.add("points", sweep=sweep, point=point, label=label or point, seed=seed, run=run, state=state, error=error)
        if state == "finished":
            self.run(run, seed, **choices)
        return run

    def run(self, run: str, seed: int, **choices) -> None:
        base = {"attention_name": "block", "masking_name": "uniform", "loss_name": "nelbo", "trainable_name": "full"}
        base |= {"block_size": 8, "token_shift": False, "lr": 1e-3, "tokens": 1000, "parameters": 1_115_520}
        base |= {"source": "tiny", "parent": "f00", "train_seconds": 60.0, "train_flops": 1e12, "val_nelbo": 2.0}
        base |= {"examples": 100, "answer_tokens": 500, "val_bits_answers": 1.0, "val_bits_prose": 2.0}
        base |= {"machine": "2 CPU cores", "versions": "python 3", "commit": "abc", "ended": 1.8e9}
        self.add("runs", run=run, seed=seed, **base | choices)

    def own(
        self,
        run: str,
        accuracy: float,
        parent: float = 0.95,
        outcomes: np.ndarray | None = None,
        answer: float = ANSWER,
        **more,
    ) -> None:
        """A run's own evaluation: the parent, and the dLM at one token per step and at TPF≈2."""
        right = correct(accuracy) if outcomes is None else outcomes
        self.evaluation(run, correct(parent), model=PARENT, nfe=answer, **more)
        self.evaluation(run, right, **more)
        self.evaluation(run, right, setting="TPF≈2", threshold=0.8, tpf=2.1, nfe=3.5, **more)

    def evaluation(self, run: str, outcomes: np.ndarray, sweep: str = "", name: str = "", **more) -> None:
        value = float(np.mean(outcomes))
        low, high = value - 0.05, value + 0.05
        row = {"model": DLM, "setting": "1 token/step", "tpf": 1.0, "nfe": 7.0, "tokens_per_second": 300.0}
        row |= columns("accuracy", value, low, high, len(outcomes)) | columns("cloze", 0.5, 0.4, 0.6, 100)
        for domain in ("code", "maths", "symbols"):
            row |= columns(domain, value, low, high, len(outcomes) // 3)
        row |= columns("bits_per_byte", 1.0, 0.9, 1.1, 12_700)
        self.add("evaluations", run=run, for_sweep=sweep, evaluation=name, correct=pack(outcomes), **row | more)

    def drift(self, run: str, value: float) -> None:
        for layer in range(4):
            for kind in ("attention", "ffn"):
                measures = {"mean_abs": value / 10, "relative": value, "one_minus_cos": value / 5}
                self.add("drift", run=run, layer=layer, kind=kind, **measures)

    def curve(self, run: str, values: dict[int, float], metrics: tuple[str, ...] = (ANSWERS, PROSE)) -> None:
        for tokens, value in values.items():
            for metric in metrics:
                self.add("curves", run=run, tokens=tokens, metric=metric, value=value)


def whole_study(seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    """Something of every sweep, so that every artefact has all that it shows."""
    study = Study()
    for seed in seeds:
        _points(study, seed)
        _blocks(study, seed)
        _masking(study, seed)
        _speed(study, seed)
        _positions(study, seed)
        _beyond(study, seed)
        recipes(study, seed)
    return study


def _points(study: Study, seed: int) -> None:
    for i, name in enumerate("bcdefghi"):
        run = study.point("table1_attention", name, seed, attention_name="bidir" if name in "bc" else "block")
        study.own(run, 0.2 + 0.08 * i + 0.01 * seed)
        study.drift(run, 0.3 - 0.02 * i)
        study.curve(run, {500: 2.5 - 0.01 * i, 1000: 2.2 - 0.01 * i})
    for i, name in enumerate(("bidir", "block", "no_shift", "position", "tokens")):
        choices = {"masking_name": "position 0.1" if i > 2 else "uniform", "tokens": 4000 if name == "tokens" else 1000}
        study.own(study.point("table5_ladder", name, seed, **choices), 0.3 + 0.1 * i)
    for lr, accuracy in ((1e-4, 0.3), (1e-3, 0.7), (1e-2, 0.1)):
        study.own(study.point("table7_lr", f"lr={lr}", seed, lr=lr), accuracy + 0.01 * seed)
        study.own(study.point("table7_adamw", f"lr={lr}", seed, lr=lr), accuracy / 2 + 0.01 * seed)
    for i, name in enumerate("bcfg"):
        study.drift(study.point("figure2e_adamw", name, seed), 0.5 - 0.05 * i)
    for name in ("base", "shift"):
        run = study.point("table4_embedding", name, seed)
        for model, score in ((PARENT, 0.4), (DLM, 0.5)):
            for task in ("similarity", "retrieval"):
                ids = {"run": run, "for_sweep": "table4_embedding", "evaluation": "embedding"}
                study.add("scores", **ids, model=model, task=task, score=score + 0.01 * seed)


def _blocks(study: Study, seed: int) -> None:
    sweep = "figure3_block_size"
    for block, accuracy in ((4, 0.4), (8, 0.7), (16, 0.5)):
        run = study.point(sweep, f"block_size={block}", seed, block_size=block)
        study.own(run, accuracy)
        study.drift(run, 0.1 * np.log2(block))
        for size in (4, 8, 16):
            outcomes = correct(accuracy - 0.01 * abs(size - block))
            study.evaluation(run, outcomes, sweep, "decoding_block_size", eval_block_size=size, threshold=1.0)
            if block == 8:
                for threshold, nfe, right in ((1.0, ANSWER, 0.6), (0.5, 3.5, 0.3 + 0.05 * np.log2(size))):
                    at = {"eval_block_size": size, "threshold": threshold, "nfe": nfe, "tpf": ANSWER / nfe}
                    study.evaluation(run, correct(right), sweep, "forwards", **at)
    for block, accuracy in ((4, 0.6), (8, 0.8), (16, 0.7)):
        run = study.point("more_tokens", f"block_size={block}", seed, block_size=block, tokens=4000)
        study.own(run, accuracy)
        study.drift(run, 0.1 * np.log2(block))
        for size in (4, 8, 16) if block == 8 else ():
            for threshold, nfe in ((1.0, ANSWER), (0.5, 3.5)):
                at = {"eval_block_size": size, "threshold": threshold, "nfe": nfe, "tpf": ANSWER / nfe}
                study.evaluation(run, correct(0.4 + np.log2(size) / 10), "more_tokens", "forwards", **at)
    for tokens in (500, 1000, 2000):
        run = study.point("figure8_tokens", f"times={tokens}", seed, tokens=tokens)
        more = {"cloze": 0.4 + tokens / 10_000, "bits_per_byte": 1.5 - 0.1 * np.log2(tokens / 500) + 0.01 * seed}
        study.own(run, 0.3 + tokens / 5000, **more)
        for threshold, nfe in ((1.0, ANSWER), (0.5, 3.5)):
            at = {"threshold": threshold, "nfe": nfe}
            study.evaluation(run, correct(0.1 + tokens / 5000), "figure8_tokens", "forwards", **at)


def _masking(study: Study, seed: int) -> None:
    schemes = {"uniform": 0.5, "half_life_0.1": 0.6, "half_life_0.25": 0.55, "half_life_0.05": 0.55}
    for sweep, extra in (("table2_masking", {"right_to_left": 0.2}), ("learned_masking", {"learned": 0.65})):
        for name, accuracy in (schemes | extra).items():
            run = study.point(sweep, name, seed, label=name.replace("_", " "), masking_name=name)
            study.own(run, accuracy)
            study.evaluation(run, correct(accuracy), sweep, "one_token", threshold=1.0, setting="as is")
            at = {"threshold": 0.3, "tpf": 5.2, "nfe": 1.4, "target": 5.6, "setting": "tpf 5.6"}
            study.evaluation(run, correct(accuracy - 0.1), sweep, "tpf", **at)
            for position in range(8):
                ids = {"run": run, "for_sweep": sweep, "evaluation": "masked", "model": DLM, "quantity": "masked"}
                study.add("positions", **ids, position=position, value=0.5 + 0.01 * position, n=1000)


def _speed(study: Study, seed: int) -> None:
    for i, name in enumerate(("small", "middle", "large")):
        sizes = {"parameters": 10**6 * 3**i, "parent": f"f{i}", "source": name}
        run = study.point("table3_family", f"parent={name}", seed, **sizes)
        study.own(run, 0.6, cloze=0.7)
        for batch in (1, 8):
            at = {"batch_size": batch, "sweep": "table3_family"}
            study.evaluation(run, correct(0.9), name="ar", model=PARENT, setting="as is", threshold=1.0, **at)
            for threshold in (1.0, 0.5):
                study.evaluation(run, correct(0.6), name="dlm", setting=f"{threshold}", threshold=threshold, **at)
    sweep = "figure10_approximate_cache"
    for name in ("block", "bidir"):
        run = study.point(sweep, name, seed)
        for evaluation, decoder in (("plain", "Threshold"), ("approximate", "DualCache")):
            if name == "bidir" or evaluation == "plain":
                for threshold in (1.0, 0.5):
                    at = {"threshold": threshold, "decoder": decoder, "setting": f"threshold {threshold}"}
                    study.evaluation(run, correct(0.5), sweep, evaluation, nfe=7 * threshold, **at)


def _positions(study: Study, seed: int) -> None:
    run = study.point("figure6_trace", "base", seed)
    ids = {"run": run, "for_sweep": "figure6_trace", "evaluation": "one_token"}
    study.add("positions", **ids, model=DLM, quantity="order", position=0, value=0.9 + 0.01 * seed, n=9)
    for position in range(8):
        study.add("positions", **ids, model=DLM, quantity="step", position=position, value=position + 0.01 * seed, n=9)
        for model in (DLM, PARENT):
            loss = 1 + 0.1 * position * (model == DLM) + 0.01 * seed
            more = {"model": model, "quantity": "loss", "position": position, "value": loss, "n": 9}
            study.add("positions", **ids | {"evaluation": "loss"}, **more)
    for step in (1, 2):
        for position in range(step - 1, 2):
            cell = {"position": position, "step": step, "confidence": 0.5, "committed": position == step - 1}
            study.add("steps", **ids, **cell, token="<b>&\n"[position * 2 :])
            study.add("steps", **ids | {"evaluation": "threshold"}, **cell, token="<b>&\n"[position * 2 :])
    run = study.point("figure12_position_loss", "base", seed)
    ids = {"run": run, "for_sweep": "figure12_position_loss", "evaluation": "loss", "quantity": "sequence_loss"}
    for model in (DLM, PARENT):
        for position in range(32):
            value = 2 + (0.1 * (position % 8) if model == DLM else 0.1 * np.sin(5.0 * position))
            study.add("positions", **ids, model=model, position=position, value=value + 0.01 * seed, n=9)
    for position in range(8):
        loss = {"quantity": "loss", "model": DLM, "position": position, "value": 1.0, "n": 9}
        study.add("positions", **ids | loss)


def _beyond(study: Study, seed: int) -> None:
    for i, size in enumerate((10**6, 4 * 10**6)):
        for block, accuracy in ((4, 0.4), (8, 0.5 + 0.2 * i), (16, 0.6)):
            name = f"parent={i}, block_size={block}"
            sizes = {"parameters": size, "parent": f"f{i}", "source": f"parent {i}", "block_size": block}
            study.own(study.point("block_by_size", name, seed, **sizes), accuracy)
    for shift in (False, True):
        for loss in ("nelbo", "mean"):
            for clean, auxiliary in CLEAN_STREAMS:
                pays = shift * (0.2 if auxiliary == "ar" else -0.1)  # the shift, with the AR loss alone
                accuracy = 0.4 + pays + 0.1 * (loss == "mean") + 0.1 * (clean != "block_noisy") + 0.01 * seed
                choices = {"attention_name": clean, "auxiliary_name": auxiliary, "loss_name": loss}
                name = f"{clean}, {auxiliary}, {shift}, {loss}"
                run = study.point("contested_factorial", name, seed, token_shift=shift, **choices)
                study.own(run, accuracy)
        for tokens in (1000, 4000):
            name = f"{shift}, {tokens}"
            run = study.point("shift_by_budget", name, seed, token_shift=shift, tokens=tokens)
            study.own(run, 0.7 if shift else 0.4 + 0.4 * (tokens == 4000), bits_per_byte=1.0 if shift else 1.2)
        run = study.point("shift_by_position", f"{shift}", seed, token_shift=shift, tokens=8000)
        study.own(run, 0.7 if shift else 0.9, bits_per_byte=1.0 if shift else 0.9)
        ids = {"run": run, "for_sweep": "shift_by_position", "evaluation": "loss", "quantity": "loss", "model": DLM}
        for position in range(4):  # the shift gains 0.6 at the first token of a block, and loses 0.1 at each other
            value = 1.0 + 0.01 * seed + shift * (-0.6 if position == 0 else 0.1)
            study.add("positions", **ids, position=position, value=value, n=9)


CLEAN_STREAMS = (
    ("block", "none"),
    ("block_noisy", "none"),
    ("block_token_causal", "none"),
    ("block_token_causal", "ar"),
)
# Recipe → its accuracy at one token per step, the accuracy that it loses at a threshold of 0.5, and its FLOPs.
RECIPES = {"efficient_dlm": (0.8, 0.3, 2e12), "dream": (0.6, 0.1, 1e12), "ar_control": (0.9, 0, 1e12)}
RECIPES |= {"untrained": (0.1, 0, 2e12)}


def recipes(study: Study, seed: int, chosen: tuple[str, ...] = tuple(RECIPES), without: tuple[str, ...] = ()) -> None:
    """Recipes, each by threshold and by the oracle, with the AR baselines beside the first, and a second stage of
    Dream; `without` evaluations of these names."""
    sweep = "recipes"

    def add(run: str, name: str, outcomes: np.ndarray, sweep: str = sweep, **more) -> None:
        if name not in without:
            shares = columns("repetitive", 0.1, 0.05, 0.2, ITEMS) | columns("empty", 0.0, 0.0, 0.05, ITEMS)
            more |= {"setting": more.get("setting", name), "tokens_per_row": 0.4}
            study.evaluation(run, outcomes, sweep, name, **shares, **columns("endless", 0.2, 0.1, 0.3, ITEMS), **more)

    def settings(run: str, accuracy: float, lost: float, sweep: str = sweep) -> None:
        study.own(run, accuracy, tokens_per_row=0.3)
        for threshold, nfe in ((1.0, 8.0), (0.5, 4.0)):
            at = {"setting": f"threshold {threshold}", "threshold": threshold, "nfe": nfe, "tpf": 8 / nfe}
            at["tokens_per_second"] = 800.0 / nfe
            add(run, "threshold", correct(accuracy - lost * (threshold < 1)), sweep, **at)

    for name in chosen:
        accuracy, lost, flops = RECIPES[name]
        run = study.point(sweep, name, seed, label=name.replace("_", " ").title(), train_flops=flops)
        settings(run, accuracy, lost)
        add(run, "oracle", correct(accuracy), nfe=2.0, tpf=4.0, tokens_per_second=None)
        study.curve(run, {500: 2.5, 1000: 2.0 + 0.1 * (name == "dream") + 0.01 * seed})
        if name == chosen[0]:
            add(run, "parent", correct(0.95), model=PARENT, nfe=8.0, tpf=1.0, tokens_per_second=100.0)
            add(run, "parent_lookup", correct(0.95), model=PARENT, nfe=6.0, tpf=8 / 6, tokens_per_second=120.0)
        if name == "ar_control":
            add(run, "lookup", correct(accuracy), nfe=6.0, tpf=8 / 6, tokens_per_second=120.0)
    if "dream" in chosen:
        first = f"{sweep}/dream/{seed}"
        run = study.point("recipes_second_stage", "d2f", seed, label="D2F after Dream", continues=first)
        settings(run, 0.7, 0.2, "recipes_second_stage")
