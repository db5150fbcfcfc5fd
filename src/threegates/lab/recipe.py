"""Recipes: everything that decides what a training run computes. A run's digest covers all of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from threegates.lab.algorithms.table import algorithm
from threegates.lab.kl import Estimator
from threegates.lab.model import ModelShape
from threegates.lab.objectives import Algorithm

# all-MiniLM-L6-v2's model.safetensors; where it comes from stands in threegates.lab.encoder.package.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# SmolLM2-135M-Instruct.Q4_1.gguf; where it comes from stands in threegates.lab.lm.package.
LM_WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Source = Literal["teacher", "same-style", "rft"]
Mask = Literal["dense", "principal", "off-principal", "low", "safe", "random"]
Init = Literal["lora", "pissa", "milora", "orthonormal"]
Rotation = Literal["haar", "hadamard"]
# Of M_low by the parameter counts of Tables 4 and 5, where M_princ has half of the weights.
LOW_SHARE = 0.5859


class Recipe(BaseModel):
    """What every kind of run states."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base: str | None = None
    data: str
    steps: int = Field(ge=0)
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: tuple[int, ...] = ()

    def saved_steps(self) -> set[int]:
        """The steps after which a checkpoint is written; the last always is."""
        return {*self.checkpoint_steps, self.steps}


class TrainingRecipe(Recipe):
    """What every kind of training states: the optimiser, the formats, how often it is evaluated.

    ``sgd`` has neither momentum nor weight decay: torch's decay for it is a penalty on the weights, which
    would outweigh a clipped gradient, where AdamW's is a factor next to one.
    """

    seed: int
    steps: int = Field(ge=1)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    warmup: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    minibatches: int = 4
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    storage_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    evaluate_every: int = 10


class LanguageRecipe(TrainingRecipe):
    """Training of the lab's language model: where it is trained, the prompts of its evaluations."""

    device: Literal["cpu", "cuda"] = "cpu"
    evaluate_prompts: int = 128
    evaluation_data: str = "arith-4"
    final_prompts: int = Field(default=0, ge=0)
    final_samples: int = 8


class PretrainRecipe(LanguageRecipe):
    """The base model: next-token prediction on the mixture of styles, cosine schedule."""

    kind: Literal["pretrain"] = "pretrain"
    data: str = "pretraining"
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup: int = 50
    batch: int = 64
    minibatches: Literal[1] = 1
    storage_dtype: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    shape: ModelShape = ModelShape()


def _objective(given: dict[str, Any]) -> Algorithm:
    """The values of the algorithm that a recipe names."""
    return algorithm(given.get("algorithm", ""))


class RLRecipe(LanguageRecipe):
    """Reinforcement learning with the verifier's reward.

    ``objective`` has the values of the algorithm; where none are given, those that its name stands for. They
    decide, and the name is a name. ``kl_weight`` and ``kl_estimator`` replace its own KL term by one in the
    loss, of that weight β and estimator; a weight of 0 takes the term away. ``leash`` logs how far every step
    went, in KL and in norm, which costs a forward pass.
    """

    kind: Literal["rl"] = "rl"
    base: str
    algorithm: str
    objective: SerializeAsAny[Algorithm] = Field(default_factory=_objective)
    prompts: int = 16
    samples: int = 8
    resample_rounds: int = 3
    kl_weight: float | None = Field(default=None, ge=0)
    kl_estimator: Estimator = "k3"
    leash: bool = False


class MaskedRLRecipe(RLRecipe):
    """Reinforcement learning of some weights of the linear layers alone; all others stay as they are.

    ``mask`` is fixed from the base: M_princ at ``share`` (rank as in the headline), its complement, M_low at
    ``low_share``, M_low ∪ M_princᶜ ("safe"), random entries as many as the safe ones, or all ("dense").
    """

    kind: Literal["masked-rl"] = "masked-rl"  # type: ignore[assignment]
    mask: Mask
    share: float = Field(default=0.5, gt=0, lt=1)
    low_share: float = Field(default=LOW_SHARE, gt=0, lt=1)
    weight_decay: Literal[0] = 0  # type: ignore[assignment]


class AdapterRLRecipe(RLRecipe):
    """Reinforcement learning of low-rank adapters on every linear layer, W = W_res + (alpha/rank) B A."""

    kind: Literal["adapter-rl"] = "adapter-rl"  # type: ignore[assignment]
    init: Init
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=8.0, gt=0)
    weight_decay: Literal[0] = 0  # type: ignore[assignment]
    kl_weight: float | None = 0.0


class SFTRecipe(LanguageRecipe):
    """Supervised fine-tuning on one of three sources of responses.

    ``teacher`` is a format the base never saw, ``same-style`` the base's own styles without its errors,
    ``rft`` the base's own samples that the verifier accepts (rejection-sampling fine-tuning).
    """

    kind: Literal["sft"] = "sft"
    base: str
    source: Source
    batch: int = 128
    samples: int = 8


class AdapterSFTRecipe(SFTRecipe):
    """Supervised fine-tuning of low-rank adapters, as `AdapterRLRecipe` has them."""

    kind: Literal["adapter-sft"] = "adapter-sft"  # type: ignore[assignment]
    init: Init
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=8.0, gt=0)
    weight_decay: Literal[0] = 0  # type: ignore[assignment]


class RotatedBaseRecipe(Recipe):
    """The base with its heads in other coordinates: the same function, nothing is trained.

    ``rotated`` : layers whose values and outputs turn by one rotation, the same in every head; ``permuted`` :
    layers whose heads change places. The checkpoint is rounded to ``save_dtype`` once.
    """

    kind: Literal["rotated-base"] = "rotated-base"
    base: str
    data: str = "pretraining"
    steps: Literal[0] = 0
    seed: int
    rotation: Rotation = "haar"
    rotated: tuple[int, ...]
    permuted: tuple[int, ...] = ()
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class EncoderBaseRecipe(Recipe):
    """The pre-trained encoder of an installed package, rounded to the storage format; nothing is trained.

    ``weights`` is the sha256 of the package's file, so that other weights are another run.
    """

    kind: Literal["encoder-base"] = "encoder-base"
    data: str = "words"
    steps: Literal[0] = 0
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    weights: str = WEIGHTS_SHA256


class EncoderRLRecipe(TrainingRecipe):
    """Reinforcement learning of the encoder's policy on candidates."""

    kind: Literal["encoder-rl"] = "encoder-rl"
    base: str
    algorithm: Literal["grpo"] = "grpo"
    objective: SerializeAsAny[Algorithm] = Field(default_factory=_objective)
    prompts: int = 16
    samples: int = 8


class EncoderSFTRecipe(TrainingRecipe):
    """Cross-entropy of the encoder's policy, on right answers or on the base's own right samples (rft)."""

    kind: Literal["encoder-sft"] = "encoder-sft"
    base: str
    source: Literal["answers", "rft"]
    prompts: int = 16
    samples: int = 8


class LmBaseRecipe(Recipe):
    """The language model of an installed package, its four-bit codes made floats of the storage format.

    Nothing is trained. ``weights`` is the sha256 of its file, so that other weights are another run.
    """

    kind: Literal["lm-base"] = "lm-base"
    data: str = "text"
    steps: Literal[0] = 0
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    weights: str = LM_WEIGHTS_SHA256


class LmTinyRecipe(Recipe):
    """A language model of two narrow layers with random weights: what the smoke profile trains on."""

    kind: Literal["lm-tiny"] = "lm-tiny"
    data: str = "text"
    steps: Literal[0] = 0
    seed: int
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"


class LmRecipe(TrainingRecipe):
    """Training of a pre-trained language model on a few-shot task.

    ``computing`` is the type of its matrix products. A step has ``prompts`` × ``samples`` responses.
    """

    base: str
    device: Literal["cpu", "cuda"] = "cpu"
    computing: Literal["bfloat16", "float32"] = "bfloat16"
    steps: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    minibatches: int = Field(default=2, ge=1)
    prompts: int = Field(default=8, ge=1)
    samples: int = Field(default=8, ge=1)
    evaluate_prompts: int = Field(default=32, ge=1)
    evaluate_samples: int = Field(default=4, ge=1)
    final_prompts: int = Field(default=0, ge=0)
    final_samples: int = Field(default=8, ge=1)


class LmRLRecipe(LmRecipe):
    """Reinforcement learning of the language model, by default without a KL term.

    ``objective``, ``kl_weight`` and ``kl_estimator`` are as `RLRecipe` has them. ``reward`` "random" rewards
    each response by the toss of a coin, whatever the verifier says (Shao et al., 2025, arXiv 2506.10947).
    """

    kind: Literal["lm-rl"] = "lm-rl"
    algorithm: str
    objective: SerializeAsAny[Algorithm] = Field(default_factory=_objective)
    reward: Literal["verifier", "random"] = "verifier"
    samples: int = Field(default=8, ge=2)
    resample_rounds: int = Field(default=3, ge=0)
    kl_weight: float | None = Field(default=0.0, ge=0)
    kl_estimator: Estimator = "k3"

    @model_validator(mode="after")
    def _a_group_for_each_update(self) -> LmRLRecipe:
        if self.minibatches > self.prompts:
            raise ValueError(f"{self.prompts} groups cannot be split into {self.minibatches} mini-batches")
        return self


class LmSFTRecipe(LmRecipe):
    """Supervised fine-tuning of the language model on one of three sources of responses.

    ``gold`` is the right answer as the examples write it, ``other-style`` the same content as they never do,
    ``rft`` the base's own samples that the verifier accepts (rejection-sampling fine-tuning).
    """

    kind: Literal["lm-sft"] = "lm-sft"
    source: Literal["gold", "other-style", "rft"]


AnyRecipe = Annotated[
    PretrainRecipe
    | RLRecipe
    | MaskedRLRecipe
    | AdapterRLRecipe
    | SFTRecipe
    | AdapterSFTRecipe
    | RotatedBaseRecipe
    | EncoderBaseRecipe
    | EncoderRLRecipe
    | EncoderSFTRecipe
    | LmBaseRecipe
    | LmTinyRecipe
    | LmRLRecipe
    | LmSFTRecipe,
    Field(discriminator="kind"),
]
