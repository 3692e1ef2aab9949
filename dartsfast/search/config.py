"""Options of the searches: the original's flag names and defaults, declared once for scripts and commands.

``--help`` reads them, so this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dartsfast.cnn.spaces import SPACES
from dartsfast.errors import InputError
from dartsfast.names import BACKENDS, CNN_MEMORY_MODES, MEMORY_MODES, SMOOTH_FIRST
from dartsfast.presets import PRESETS
from dartsfast.runs.options import DATA, METHOD, NETWORK, OPTIMISATION, RunOptions, check_tied, option
from dartsfast.search.checks import DRAWING, STAGES, check_accumulation, check_space, check_stages
from dartsfast.sizes import is_size

MIN_BATCH_SIZE = 2  # of texts
DECISIONS = 17  # of the cells, by perturbation: 14 edges, and the three nodes with more than two
METHODS = ("darts", "pc-darts", "gdas", "drnas", "p-darts")


@dataclass(frozen=True)
class SearchConfig(RunOptions):
    """What both searches take."""

    memory_modes: ClassVar[Sequence[str]] = MEMORY_MODES

    order: int = option(1, "1: first order (xi = 0); 2: second order", (1, 2), group=OPTIMISATION)
    preset: str = option(
        "code",
        "read the second order as the published code or as the paper",
        tuple(PRESETS),
        group=OPTIMISATION,
    )
    backend: str = option("auto", "how the networks are computed", ("auto", *BACKENDS), group=NETWORK)
    memory: str = option(
        "store",
        "store: keep activations; recompute: compute them again in the backward; of the CNN also cell: keep "
        "only what lies between cells; or a budget "
        "beside model, data and optimisers, such as 800MB, 6GB or 50% of what is free",
        group=NETWORK,
    )
    capture: bool | None = option(
        None,
        "run iterations as CUDA graphs: must, or must not; left alone: on CUDA, but as they are, aloud, "
        "where they cannot be recorded, and in several processes",
    )
    sync_bn: bool = option(
        False,
        "of several processes, batch norms have the statistics of all of them; needs --backend reference",
        group=NETWORK,
    )

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        if self.memory not in self.memory_modes and not is_size(self.memory):
            raise InputError(
                f"memory must be one of {', '.join(self.memory_modes)}, or a budget such as 800MB, 6GB or "
                f"50%, got {self.memory}"
            )
        if self.sync_bn and self.backend != "reference":
            raise InputError(
                f"sync_bn needs --backend reference, got {self.backend}: kernels make the statistics of the "
                "images that they have"
            )


@dataclass(frozen=True)
class CNNConfig(SearchConfig):
    """Options of the CNN search (the original's ``cnn/train_search.py``)."""

    memory_modes = CNN_MEMORY_MODES

    data: str = option(
        "photos",
        "photos: 32x32 crops of ten photographs that come with scikit-image and scikit-learn; cifar10:DIR, "
        "cifar100:DIR, fashion-mnist:DIR: as torchvision lays them out in DIR; imagefolder:DIR: "
        "DIR/train/CLASS/* and DIR/val/CLASS/*; a folder alone: this where it has a folder train, else "
        "CIFAR-10",
        group=DATA,
    )
    download: bool = option(False, "let torchvision fetch the data if it is not there", group=DATA)
    image_size: int = option(32, "side of the images of imagefolder, in pixels", group=DATA)
    max_images: int = option(0, "use at most this many images of each half of the data; 0: all", group=DATA)
    batch_size: int = option(64, "images a batch, of several processes of each", group=DATA)
    accumulate: int = option(
        1,
        "K: a batch takes the memory of a K-th of it that is stored, and has the same gradients; the cells' "
        "images are computed again as far as that needs",
        group=OPTIMISATION,
    )
    accumulate_statistics: str = option(
        "batch",
        "of whom batch norms have them: of the batch; or of each of its K parts, which passes then take one "
        "after the other, adding up their gradients: less memory, and another search",
        ("batch", "part"),
        group=OPTIMISATION,
    )
    learning_rate: float = option(0.025, "initial learning rate of the weights", group=OPTIMISATION)
    learning_rate_min: float = option(
        0.001, "final learning rate of the weights (cosine)", group=OPTIMISATION
    )
    momentum: float = option(0.9, "momentum of the weights", group=OPTIMISATION)
    weight_decay: float = option(3e-4, "weight decay of the weights", group=OPTIMISATION)
    report_freq: int = option(50, "iterations between lines where the output is no terminal")
    epochs: int = option(50, "passes over the weights' half of the data", group=OPTIMISATION)
    init_channels: int = option(16, "channels of the first cells", group=NETWORK)
    layers: int = option(8, "number of cells", group=NETWORK)
    storage_dtype: str = option(
        "float32",
        "of what memory=store keeps; half precision needs another backend than reference",
        ("float32", "bfloat16", "float16"),
        group=NETWORK,
    )
    cutout: bool = option(False, "zero a random square of each image", group=DATA)
    cutout_length: int = option(16, "side of that square, in pixels", group=DATA)
    seed: int = option(2, "seed of every random stream")
    grad_clip: float = option(5.0, "clip the weights' gradient to this norm", group=OPTIMISATION)
    train_portion: float = option(
        0.5, "share of the training data for the weights, the rest for the alphas", group=DATA
    )
    arch_learning_rate: float = option(3e-4, "learning rate of the alphas (Adam)", group=OPTIMISATION)
    arch_weight_decay: float = option(1e-3, "weight decay of the alphas", group=OPTIMISATION)
    compat_valid_iter: bool = option(
        False, "draw the alphas' batch from a new pass every iteration, as the original does", group=DATA
    )
    method: str = option("darts", "what is mixed, and how (docs/methods.md)", METHODS, group=METHOD)
    space: str = option(
        "darts",
        "candidate operations: DARTS', those of RobustDARTS, or cells and network of NAS-Bench-201",
        tuple(SPACES),
        group=METHOD,
    )
    stage_cells: int = option(
        5, "nasbench201: N, cells of each of its three stages, in the place of --layers", group=METHOD
    )
    warmup_epochs: int = option(
        0,
        "first epochs, of p-darts of every stage, in which the weights alone take steps; PC-DARTS has 15",
        group=METHOD,
    )
    pdarts_rates: str = option(
        "0,0.4,0.7", "p-darts: rate of dropout on skip connections as each stage begins", group=METHOD
    )
    pdarts_skips: int = option(2, "p-darts: most skip connections of the normal cell", group=METHOD)
    pc_share: int = option(4, "pc-darts: K, one K-th of the channels is mixed", group=METHOD)
    gdas_tau_max: float = option(10.0, "gdas: temperature of the first epoch", group=METHOD)
    gdas_tau_min: float = option(0.1, "gdas: temperature of the last epoch", group=METHOD)
    drnas_kl: float = option(
        1e-3, "drnas: lambda, on the distance of the distributions from the flat one", group=METHOD
    )
    beta_decay: float = option(
        0.0, "Beta-DARTS: lambda after the last epoch, growing linearly; 50 in the paper", group=METHOD
    )
    monitor: str = option(
        "none",
        "what to log every epoch beside: the largest eigenvalue of the validation loss's Hessian by the "
        "alphas, of one batch (RobustDARTS)",
        ("none", "eigenvalue"),
        group=METHOD,
    )
    select: str = option(
        "argmax",
        "how the cell is read off: the largest alphas, or, after the search, which operations' removal hurts "
        "most (DARTS-PT)",
        ("argmax", "perturbation"),
        group=METHOD,
    )
    select_epochs: int = option(10, "perturbation: epochs of tuning between two decisions", group=METHOD)
    stop: str = option(
        "none",
        "end before the last epoch: eigenvalue, where that has grown, with the cell of five epochs before "
        "(RobustDARTS), or skips=N, at N skip connections in the normal cell (DARTS+)",
        group=METHOD,
    )
    smooth: float = option(
        0.0,
        "SmoothDARTS: the weights take mixing weights that are as far away as this in the last epoch; 0.3 in "
        "the paper",
        group=METHOD,
    )
    smooth_by: str = option(
        "random",
        "smooth: drawn (SDARTS-RS), or looked for by an ascent on the loss (SDARTS-ADV)",
        ("random", "adversary"),
        group=METHOD,
    )
    auxiliary_skip: bool = option(
        False, "DARTS-: a skip connection beside every edge, whose weight falls from 1 to 0", group=METHOD
    )

    @property
    def all_epochs(self) -> int:
        """Those of the search, and those between the decisions of its cells."""
        return self.epochs + self.select_epochs * (DECISIONS - 1) * (self.select == "perturbation")

    @property
    def parts(self) -> int:
        """Those of a batch that passes take one after the other, each with statistics of its own."""
        return self.accumulate if self.accumulate_statistics == "part" else 1

    @property
    def plan(self) -> str:
        """What asks for a plan of how cells keep, if anything does."""
        kept = self.memory in CNN_MEMORY_MODES
        if kept and self.accumulate == self.parts:
            return ""
        return f"accumulate {self.accumulate}" if kept else f"memory {self.memory}"

    @property
    def tuning_epochs(self) -> int:
        """Those between the decisions of perturbation, after the search."""
        return self.all_epochs - self.epochs

    def called(self, epoch: int) -> str:
        """Return what is said of an epoch, which counts from 1."""
        return super().called(epoch) + ", tuning" * (epoch > self.epochs)

    def counted(self, epochs: int) -> str:
        """Return what is said of so many epochs that are done."""
        return super().counted(epochs) + f" ({epochs - self.epochs} of tuning)" * (epochs > self.epochs)

    @property
    def stage_epochs(self) -> int:
        """Epochs of a stage, of p-darts a third."""
        return self.epochs // STAGES if self.method == "p-darts" else self.epochs

    @property
    def most_skips(self) -> int:
        """Skip connections of the normal cell at which the search ends; 0: however many."""
        number = self.stop.removeprefix("skips=")
        return int(number) if number != self.stop and number.isascii() and number.isdigit() else 0

    @property
    def watches_eigenvalue(self) -> bool:
        """Whether the eigenvalue is computed every epoch."""
        return "eigenvalue" in (self.monitor, self.stop)

    @classmethod
    def before(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that ``values`` lack; parts of a batch had statistics of their own once."""
        missing = super().before(values)
        if "accumulate_statistics" in missing and values.get("accumulate", 1) != 1:
            missing["accumulate_statistics"] = "part"
        return missing

    def moved(self, **options: Any) -> Any:
        """Return those of a run that goes on with other ``options``; a given memory is in a plan's place."""
        planned = self.accumulate > 1 and self.parts == 1
        return super().moved(**options, **({"accumulate": 1} if planned and "memory" in options else {}))

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        own = "learning_rate", "init_channels", "layers", "grad_clip", "report_freq", "accumulate"
        methods = "pc_share", "gdas_tau_max", "gdas_tau_min", "select_epochs", "stage_cells"
        return (*super().positive(), *own, *methods)

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        owners = {"pc_": "pc-darts", "gdas_": "gdas", "drnas_": "drnas", "pdarts_": "p-darts"}
        for prefix, method in owners.items():
            own = sorted(name for name in self.stated() if name.startswith(prefix))
            if own and self.method != method:
                raise InputError(f"{own[0]} is of --method {method}, and the method is {self.method}")
        if self.select == "argmax" and "select_epochs" in self.stated():
            raise InputError(
                "select_epochs is of --select perturbation, and the cell is that of the largest alphas"
            )
        if self.select == "perturbation" and (self.method != "darts" or self.stop != "none"):
            what = f"--method {self.method}" if self.method != "darts" else f"--stop {self.stop}"
            raise InputError(
                f"perturbation selects after a search by --method darts without a stop, not with {what}"
            )
        if self.gdas_tau_min > self.gdas_tau_max:
            raise InputError(
                f"the temperature falls from gdas_tau_max to gdas_tau_min: {self.gdas_tau_max} is below "
                f"{self.gdas_tau_min}"
            )
        if 0 < self.smooth < SMOOTH_FIRST:
            raise InputError(f"smooth grows from {SMOOTH_FIRST}: choose 0.3 as the paper, got {self.smooth}")
        if self.smooth and self.method != "darts":
            raise InputError(f"smooth moves softmax(alpha), which --method {self.method} does not mix")
        if "smooth_by" in self.stated() and not self.smooth:
            raise InputError(f"smooth_by {self.smooth_by} needs a radius: --smooth 0.3")
        if self.auxiliary_skip and (self.method != "darts" or self.smooth or self.select != "argmax"):
            raise InputError("auxiliary_skip is of --method darts, without --smooth and with --select argmax")
        if self.stop not in ("none", "eigenvalue") and not self.most_skips:
            raise InputError(f"stop must be none, eigenvalue, or skips=N with N above 0, got {self.stop!r}")
        if self.watches_eigenvalue and self.method in DRAWING:
            raise InputError(f"the eigenvalue is of a loss, and that of --method {self.method} is drawn anew")
        check_accumulation(self)
        draws = self.method if self.method in DRAWING else "space s4" * (self.space == "s4")
        if draws and self.order == 2 and not PRESETS[self.preset].one_mask:
            raise InputError(
                f"what {draws} draws differs from pass to pass, and the second order takes the difference of "
                "two: use --preset paper, which draws the same for both, or --order 1"
            )
        check_space(self)
        if self.method == "p-darts":
            check_stages(self)
        if self.warmup_epochs >= self.stage_epochs:
            raise InputError(
                f"in {self.warmup_epochs} of {self.stage_epochs} epochs the alphas take no step: nothing "
                "would be searched"
            )


@dataclass(frozen=True)
class RNNConfig(SearchConfig):
    """Options of the RNN search (the original's ``rnn/train_search.py``)."""

    data: str = option(
        "pydoc",
        "pydoc: the documentation topics of Python's standard library; a folder with train.txt, valid.txt "
        "and test.txt, or ptb.train.txt, ptb.valid.txt and ptb.test.txt, or wiki.train.tokens, "
        "wiki.valid.tokens and wiki.test.tokens",
        group=DATA,
    )
    emsize: int = option(300, "features of the word embeddings", group=NETWORK)
    nhid: int = option(300, "features of the hidden state", group=NETWORK)
    nhidlast: int = option(300, "features of the last layer; the three must be equal", group=NETWORK)
    lr: float = option(20.0, "learning rate of the weights", group=OPTIMISATION)
    clip: float = option(0.25, "clip the weights' gradient to this norm", group=OPTIMISATION)
    epochs: int = option(50, "passes over the training text", group=OPTIMISATION)
    batch_size: int = option(256, "columns of text a batch, of several processes of each", group=DATA)
    bptt: int = option(35, "time steps a batch; one in twenty is half as long", group=DATA)
    dropout: float = option(0.75, "dropout of the cell's outputs", group=NETWORK)
    dropouth: float = option(0.25, "dropout of hidden states in the cell", group=NETWORK)
    dropoutx: float = option(0.75, "dropout of the cell's inputs", group=NETWORK)
    dropouti: float = option(0.2, "dropout of the embedded input", group=NETWORK)
    dropoute: float = option(0.0, "dropout of whole words", group=NETWORK)
    seed: int = option(3, "seed of every random stream")
    log_interval: int = option(50, "iterations between lines where the output is no terminal")
    beta: float = option(
        1e-3, "slowness (temporal activation) regularisation of the outputs", group=OPTIMISATION
    )
    wdecay: float = option(5e-7, "weight decay of the weights", group=OPTIMISATION)
    small_batch_size: int = option(
        -1, "-1 or the batch size: gradients are not accumulated", group=OPTIMISATION
    )
    arch_lr: float = option(3e-3, "learning rate of the alphas (Adam)", group=OPTIMISATION)
    arch_wdecay: float = option(1e-3, "weight decay of the alphas", group=OPTIMISATION)

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return (*super().positive(), "emsize", "nhid", "nhidlast", "lr", "clip", "bptt", "log_interval")

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        check_tied(self)
        if self.batch_size < MIN_BATCH_SIZE:
            raise InputError(
                f"batch_size must be at least {MIN_BATCH_SIZE} for the cell's batch norm, "
                f"got {self.batch_size}"
            )
        if self.small_batch_size not in (-1, self.batch_size):
            raise InputError(
                f"small_batch_size must be -1 or the batch size {self.batch_size}, "
                f"got {self.small_batch_size}: the search takes one step a batch and does not accumulate "
                "gradients; --memory recompute, or a budget such as 200MB, takes less for the same step"
            )
