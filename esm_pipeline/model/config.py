"""The configuration of an ESM model. Peer: transformers 4.37.2 `EsmConfig`."""

from __future__ import annotations

import copy
import inspect
import json
import os
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, overload

import torch

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.files import atomic_path, require_folder
from esm_pipeline.json_files import read_object
from esm_pipeline.model.alphabet import ALPHABET
from esm_pipeline.model.bounds import (
    MOST_LAYERS,
    MOST_ROWS,
    MOST_WIDTH,
    SWITCH,
    is_number,
    is_switch,
    is_whole,
    whole_between,
)
from esm_pipeline.model.checkpoints import fair_esm
from esm_pipeline.model.checkpoints.adapters import adapter_settings
from esm_pipeline.model.checkpoints.hub import (
    CONFIG_FILE,
    config_of,
    locate_config,
)
from esm_pipeline.model.checkpoints.keywords import (
    hub_options,
    normalize_kwargs,
    refuse,
    refuse_unknown,
)
from esm_pipeline.model.folding.config import EsmFoldConfig
from esm_pipeline.model.labels import Labels
from esm_pipeline.model.pruned_heads import missing_heads, read_pruned_heads

WHOLE_NUMBERS = {
    "vocab_size": (1, MOST_ROWS),
    "hidden_size": (1, MOST_WIDTH),
    "num_hidden_layers": (0, MOST_LAYERS),
    "num_attention_heads": (1, MOST_WIDTH),
    "intermediate_size": (1, MOST_WIDTH),
    "max_position_embeddings": (1, MOST_ROWS),
}
"""Settings that determine sizes, with the smallest and largest value of each."""

PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
SWITCHES = (
    *("emb_layer_norm_before", "token_dropout", "is_decoder", "add_cross_attention"),
    *("tie_word_embeddings", "is_folding_model", "use_cache"),
    *("output_attentions", "output_hidden_states", "return_dict"),
)

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

POSITION_TYPES = ("absolute", "rotary", "relative_key", "relative_key_query")


class EsmConfig:
    """The content of a checkpoint's `config.json`; unknown keys are kept and written again.

    Arguments and defaults are those of the reference. Positions are `absolute` (ESM-1b, ESM-1v),
    `rotary` (ESM-2), `relative_key` or `relative_key_query`.
    """

    model_type = "esm"
    architectures: list[str] | None = None
    torch_dtype: torch.dtype | None = None
    """Precision of the model that was saved with it, text in the file; None before it is saved."""

    # attributes of every config of the reference; written to config.json only if they are set
    is_encoder_decoder = False
    tie_encoder_decoder = False
    torchscript = False
    use_bfloat16 = False
    chunk_size_feed_forward = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    sep_token_id: int | None = None
    decoder_start_token_id: int | None = None
    cross_attention_hidden_size: int | None = None
    classifier_dropout: float | None = None
    finetuning_task: str | None = None
    task_specific_params: dict[str, Any] | None = None
    tokenizer_class: str | None = None
    prefix: str | None = None
    _name_or_path = ""
    _commit_hash: str | None = None
    transformers_version: str | None = None

    def __init__(
        self,
        vocab_size: int | None = None,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 1026,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        position_embedding_type: str = "absolute",
        use_cache: bool = True,
        emb_layer_norm_before: bool | None = None,
        token_dropout: bool = False,
        is_folding_model: bool = False,
        esmfold_config: EsmFoldConfig | dict[str, Any] | None = None,
        vocab_list: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.pad_token_id = pad_token_id
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.use_cache = use_cache
        self.emb_layer_norm_before = emb_layer_norm_before
        self.token_dropout = token_dropout
        self.is_folding_model = is_folding_model
        self.esmfold_config = EsmFoldConfig.read(esmfold_config) if is_folding_model else None
        self.vocab_list = vocab_list
        if is_folding_model and vocab_list is None:
            self.vocab_list = list(ALPHABET)
        self.is_decoder: bool = kwargs.pop("is_decoder", False)
        self.add_cross_attention: bool = kwargs.pop("add_cross_attention", False)
        self.pruned_heads = read_pruned_heads(kwargs.pop("pruned_heads", None), num_hidden_layers)
        self.output_attentions: bool = kwargs.pop("output_attentions", False)
        self.output_hidden_states: bool = kwargs.pop("output_hidden_states", False)
        self.return_dict: bool = kwargs.pop("return_dict", True)
        self.tie_word_embeddings: bool = kwargs.pop("tie_word_embeddings", True)
        self.problem_type: str | None = kwargs.pop("problem_type", None)
        self._labels = Labels(
            kwargs.pop("id2label", None),
            kwargs.pop("label2id", None),
            kwargs.pop("num_labels", None),
        )
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """`torch_dtype` may be given as text."""
        super().__setattr__(name, read_torch_dtype(value) if name == "torch_dtype" else value)

    @property
    def dtype(self) -> torch.dtype | None:
        """Name of `torch_dtype` in transformers 5."""
        return self.torch_dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype | str | None) -> None:
        self.torch_dtype = read_torch_dtype(dtype)

    @property
    def name_or_path(self) -> str:
        """Where it was loaded from; not written to config.json."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, name: object) -> None:
        self._name_or_path = str(name)

    def get_text_config(self, *args: Any, **kwargs: Any) -> EsmConfig:
        """This config: there are no others for parts of the model."""
        return self

    @property
    def use_return_dict(self) -> bool:
        """Name of `return_dict` in the reference."""
        return self.return_dict

    @property
    def id2label(self) -> dict[int, str]:
        """Number, from 0 → name of a label."""
        return self._labels.names

    @id2label.setter
    def id2label(self, names: dict[int, str]) -> None:
        self._labels.rename(names)

    @property
    def label2id(self) -> dict[str, int]:
        """Name → number of a label."""
        return self._labels.numbers

    @label2id.setter
    def label2id(self, numbers: dict[str, int]) -> None:
        self._labels.numbers = numbers

    @property
    def num_labels(self) -> int:
        """Number of classes, labels or values that a classifier predicts."""
        return self._labels.count

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != self.num_labels:
            self._labels = Labels(count=count)

    def require_supported(self, *, limits: bool = True) -> None:
        """Raise WeightsError, naming the setting, if no model can be built from this config.

        limits: also refuse what is larger than in any model.
        """
        for name in ("vocab_size", "pad_token_id"):
            if getattr(self, name) is None:
                raise WeightsError(f"config: {name} is not set; the standard alphabet has 33 and 1")
        for name, (least, most) in WHOLE_NUMBERS.items():
            if not is_whole(getattr(self, name), least, most if limits else inf):
                raise self.wrong(name, whole_between(least, most))
        for name in PROBABILITIES:
            if not is_number(getattr(self, name), 0, 1):
                raise self.wrong(name, "a number from 0 to 1")
        for name in SWITCHES:
            if not is_switch(getattr(self, name)):
                raise self.wrong(name, SWITCH)
        if not is_number(self.layer_norm_eps, 0, 1) or not self.layer_norm_eps:
            raise self.wrong("layer_norm_eps", "a number above 0, and at most 1")
        if not is_number(self.initializer_range, 0):
            raise self.wrong("initializer_range", "a number from 0")
        if not isinstance(self.vocab_list, (list, tuple, NoneType)) or not all(
            isinstance(token, str) for token in self.vocab_list or ()
        ):
            raise self.wrong("vocab_list", "a list of tokens")
        for name in ("pad_token_id", "mask_token_id"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 0, (self.vocab_size or 0) - 1):
                raise WeightsError(f"config: {name} is {brief(value)}, not the id of a token")
        if self.hidden_size % self.num_attention_heads:
            raise WeightsError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.position_embedding_type not in POSITION_TYPES:
            raise WeightsError(
                f"config: position_embedding_type {brief(self.position_embedding_type)} is not "
                f"one of {', '.join(POSITION_TYPES)}"
            )
        self._labels.require_supported()
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise WeightsError(
                f"config: problem_type {brief(self.problem_type)} is not one of "
                f"{', '.join(PROBLEM_TYPES)}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise WeightsError(
                "config: add_cross_attention is set; set is_decoder as well, or leave both out"
            )
        wrong = missing_heads(self.pruned_heads, self.num_hidden_layers, self.num_attention_heads)
        if wrong:
            raise WeightsError(f"config: pruned_heads: {wrong}")

    def wrong(self, name: str, wanted: str) -> WeightsError:
        """The error for a setting with a wrong value."""
        return WeightsError(
            f"config: {name} is {brief(getattr(self, name))}; it should be {wanted}"
        )

    @property
    def max_residues(self) -> int | None:
        """Most residues between BOS and EOS for the position table; None without a table."""
        if self.position_embedding_type == "rotary" or self.pad_token_id is None:
            return None
        counted_from = self.pad_token_id + 1 if self.position_embedding_type == "absolute" else 0
        return self.max_position_embeddings - counted_from - 2

    def to_dict(self) -> dict[str, Any]:
        """All settings, as `config.json` holds them."""
        values = {**vars(self), "id2label": self.id2label, "label2id": self.label2id}
        del values["_labels"]
        values = {**copy.deepcopy(values), "model_type": self.model_type}
        values.pop("_name_or_path", None)  # a path on this machine
        if isinstance(self.esmfold_config, EsmFoldConfig):
            values["esmfold_config"] = self.esmfold_config.to_dict()
        if self.torch_dtype is not None:
            values["torch_dtype"] = str(self.torch_dtype).removeprefix("torch.")
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The config of a parsed `config.json`, some settings replaced by `overrides`.

        Another `num_labels` resets the names of the labels. Raises WeightsError for another family
        of models, and for invalid values.
        """
        stale: tuple[str, ...] = ()
        if "id2label" in overrides:
            stale = ("label2id", "num_labels")
        elif overrides.get("num_labels") is not None:
            named = values.get("id2label")
            if not isinstance(named, dict) or overrides["num_labels"] != len(named):
                stale = ("id2label", "label2id")
        kept = {name: value for name, value in values.items() if name not in stale}
        merged = {**copy.deepcopy(kept), **overrides}
        model_type = merged.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise WeightsError(
                f"config: model_type is {brief(model_type)}, not 'esm'; choose a checkpoint of the "
                "ESM family (ESM-1b, ESM-1v, ESM-2)"
            )
        for name in merged:
            if name.startswith("__") or callable(getattr(cls, name, None)) or name == "_labels":
                raise WeightsError(f"config: {brief(name)} cannot be a setting; leave it out")
        try:
            return cls(**merged)
        except (TypeError, AttributeError) as error:
            raise WeightsError(f"config: an invalid key ({error})") from None

    @overload
    @classmethod
    def from_pretrained(  # type: ignore[overload-overlap]
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        *,
        return_unused_kwargs: Literal[True],
        **options: object,
    ) -> tuple[Self, dict[str, object]]: ...
    @overload
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        **options: object,
    ) -> Self: ...
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Self | tuple[Self, dict[str, object]]:
        """Read the settings of a folder, a config or fair-esm file, a hub id or "demo".

        `revision`, `cache_dir`, `local_files_only` and `token` say how to find it; other keywords
        replace settings. A keyword that is not a setting is an error; with `return_unused_kwargs`,
        (config, dict of these) is returned instead. Raises WeightsError, InputError.
        """
        with_unused = options.pop("return_unused_kwargs", False)
        given = {"cache_dir": cache_dir, "token": token, "revision": revision, **options}
        given |= {"local_files_only": local_files_only, "force_download": force_download}
        name, options = normalize_kwargs("EsmConfig.from_pretrained", path_or_hub_id, given)
        where = hub_options(name, options)
        place = locate_config(name, **where)
        file = config_of(place)
        values = cls.read_file(file)
        options = {**adapter_settings(place), **options}
        unused: dict[str, Any] = {}
        if with_unused:
            known = cls.from_dict(values)
            unused = {key: value for key, value in options.items() if not hasattr(known, key)}
            options = {key: value for key, value in options.items() if key not in unused}
        config = cls.from_values(file, values, **options)
        config.name_or_path = name
        return (config, unused) if with_unused else config

    @classmethod
    def from_file(cls, path: Path, **overrides: Any) -> Self:
        """Read one `config.json`, or the settings in a fair-esm file.

        Raises WeightsError, naming the file, and InputError for an override that is not a setting.
        """
        return cls.from_values(path, cls.read_file(path), **overrides)

    from_json_file = from_file

    @classmethod
    def get_config_dict(
        cls, path_or_hub_id: str | os.PathLike[str] | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the file says that `from_pretrained` would read, and the keywords left over."""
        name, options = normalize_kwargs("EsmConfig.get_config_dict", path_or_hub_id, options)
        place = locate_config(name, **hub_options(name, options))
        return cls.read_file(config_of(place)), options

    @classmethod
    def read_file(cls, path: Path) -> dict[str, Any]:
        """The settings in one `config.json` or fair-esm file. Raises WeightsError, naming it."""
        path = Path(path)
        try:
            if path.suffix == fair_esm.SUFFIX:
                return fair_esm.read_fair_settings(path)
            return read_object(path)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path}: not a readable config ({error})") from None

    @classmethod
    def from_values(cls, path: Path, values: dict[str, Any], **overrides: Any) -> Self:
        """The config of `values`, read from `path`; errors name the path."""
        try:
            plain = cls.from_dict(values)
            known = {*dir(plain), *inspect.signature(cls).parameters}
            refuse_unknown(f"{path}", overrides, known)
            return cls.from_dict(values, **overrides) if overrides else plain
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None

    def update(self, values: dict[str, Any]) -> None:
        """Replace settings."""
        for name, value in values.items():
            setattr(self, name, value)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write `config.json` into a folder. Raises InputError if it is not a folder."""
        refuse("EsmConfig.save_pretrained", {"push_to_hub": push_to_hub, **options})
        require_folder(save_directory)
        self.to_json_file(Path(save_directory) / CONFIG_FILE)

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Write the text of `config.json` to `path`."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self.to_json_string(), encoding="utf-8")

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and `model_type`."""
        own = type(self)().to_dict()
        values = self.to_dict()
        changed = {key: value for key, value in values.items() if own.get(key, ...) != value}
        return {**changed, "model_type": self.model_type}

    def to_json_string(self) -> str:
        """The text of `config.json`; names of labels only if they are not the default."""
        values = self.to_dict()
        usual = Labels()
        if (self.id2label, self.label2id) == (usual.names, usual.numbers):
            del values["id2label"], values["label2id"]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EsmConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"EsmConfig {json.dumps(self.to_dict(), indent=2, sort_keys=True)}"


def named_dtype(given: Any) -> torch.dtype | None:
    """A dtype, or the dtype of a name such as "float32" or "torch.float32"; otherwise None."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    return found if isinstance(found, torch.dtype) else None


def read_torch_dtype(given: Any) -> torch.dtype | None:
    """The dtype that `torch_dtype` names; None for None and "auto". Raises WeightsError."""
    found = named_dtype(given)
    if found is None and given not in (None, "auto"):
        raise WeightsError(
            f"config: torch_dtype is {given!r}, which is not a precision; give one such as float32"
        )
    return found
