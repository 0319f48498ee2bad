"""The types of the options that build no object: those of the commands and of the groups `trainer`, `runtime` and
`evaluation`. A class has a field for every value of its YAML file, whose comments explain the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from dlm.config.kinds import AtLeast, Text

Count = Annotated[int, AtLeast(1)]
Whole = Annotated[int, AtLeast(0)]
Positive = Annotated[float, AtLeast(0)]
Texts = Text | int | float | bool | list[Text | int | float | bool]  # YAML reads some texts as numbers or booleans
LIKELIHOODS = ("exact", "nelbo")
Name = str | int  # YAML reads an id of digits as a number


@dataclass(frozen=True)
class Evaluation:
    tasks_per_family: Whole
    max_new_tokens: Count
    thresholds: list[float]
    tpf_targets: list[float]
    calibration_per_family: Count
    likelihood_rows: Count
    likelihood_samples: Count
    length: Count
    cloze_items: Count
    throughput_prompts: Count
    throughput_repeats: Count
    batch_size: Count
    skip: bool = False
    benchmarks: Sequence[str] = ()


@dataclass
class Harness:
    """How `tasks=` asks benchmarks of lm-evaluation-harness."""

    limit: Count | None
    num_fewshot: Whole | None
    max_gen_toks: Count | None
    batch_size: Count
    likelihood: str
    samples: Count
    chat_template: bool
    system: str | None
    include: str | None
    out: str | None
    parent: bool
    seed: Whole

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"harness.likelihood {self.likelihood!r} is unknown: choose {' or '.join(LIKELIHOODS)}")


@dataclass(frozen=True)
class Runtime:
    strategy: str
    threads: Whole | None
    workers: int | str
    checkpoint_every: Count
    val_every: Count
    log_every: Count
    drift_every: Whole
    progress_bar: bool
    activation_checkpointing: bool | None
    pieces: Count
    memory_gb: Positive | None
    sweeps: list[str]


@dataclass(frozen=True)
class Trainer:
    accelerator: str
    devices: Count
    num_nodes: Count
    precision: str | int
    accumulate: Count
    clip: Positive | None
    on_nonfinite: str
    compile: bool

    @property
    def processes(self) -> int:
        """How many train a run together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class Budget:
    unit: str
    amount: Positive | None


@dataclass(frozen=True)
class Train:
    """The options of `dlm.train` that determine how a run trains; the others are in `Keep`."""

    block_size: int
    token_shift: bool
    tokens: float
    budget: Budget
    lr: float
    seed: Whole
    schedule: dict[str, dict[Any, float]] | None
    trainer: Trainer
    runtime: Runtime


@dataclass
class Keep:
    """The options of `dlm.train` that are outside a run's identity and are needed before the run is created."""

    runs_dir: str
    force: bool
    retry: bool
    objective: str | None
    evaluation: Evaluation


@dataclass
class Data:
    rows: Count


@dataclass
class OfRun:
    """Of a command that reads a finished run."""

    run: Name
    device: str
    runs_dir: str


@dataclass
class Evaluate(OfRun):
    evaluation: Evaluation
    tasks: list[str] | None
    harness: Harness
    allow_code_execution: bool


@dataclass
class Answers:
    """Of a command that answers prompts with a run, or with an exported model."""

    run: Name | None
    parent: bool
    device: str
    runs_dir: str


@dataclass
class Generate(Answers):
    prompt: Texts | None
    image: Texts | None
    max_new_tokens: int
    stop: Texts | None
    live: bool | str
    html: str | None
    delay: float
    seed: Whole


@dataclass(frozen=True)
class Limits:
    """What one client may ask of a server, and all of them together."""

    default_tokens: Count
    new_tokens: Count
    prompt_tokens: Count
    batch: Count
    queue: Count
    kept_tokens: Whole
    body: Count
    pictures: Count
    pixels: Count


@dataclass
class Serve(Answers):
    name: str | None
    host: str
    port: Count
    key: str | None
    template: str
    limits: Limits


@dataclass
class Chat(Answers):
    system: Text | None
    max_new_tokens: Count
    stop: Texts | None
    template: str
    seed: Whole
    kept_tokens: Whole


@dataclass
class Export:
    run: Name
    to: str
    threshold: float | None
    hub: str | None
    upload: bool
    private: bool
    license: str | None
    runs_dir: str


@dataclass
class TowerSize:
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    image_size: Count
    patch_size: Count


@dataclass
class Compose:
    tower: str
    size: TowerSize
    image_mean: float
    image_std: Positive
    seed: Whole
    to: str


@dataclass
class Measure(OfRun):
    items_per_family: Count
    calibration_per_family: Count
    max_new_tokens: Count
    rows: Count
    length: Count
    samples: Count
    repeats: Count
    timed_items_per_family: Count
    texts: Count
    batch_size: Count


@dataclass
class Policy(OfRun):
    items_per_family: Count
    max_new_tokens: Count
    held_out: float
    seed: Whole


@dataclass
class Dashboard:
    entity: str | None
    project: str | None
    to: str
    draw: str | None


@dataclass
class Replay:
    run: Name
    runs_dir: str


@dataclass
class Embedded:
    run: Name | None
    pretraining: str
    to: str
    runs_dir: str


@dataclass
class Peer:
    dllm: str | None


@dataclass
class Benchmark:
    device: str
    dtype: str | None
    gate_dtype: str | None
    token_shift: bool
    compile: bool
    repeats: int
    warmup: int
    clock: str
    threads: int | None
    peer: Peer
    peak_tflops: float | None
    peak_bandwidth_gbs: float | None
    seed: Whole
    runs_dir: str
    out: str | None
