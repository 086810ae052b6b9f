"""What the ESM classes share: construction, `from_pretrained`, `save_pretrained`.

Peer: transformers `PreTrainedModel`, reduced to what users call on ESM models.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import require_folder
from esm_pipeline.model.checkpoints.adapters import Adapter, require_merged
from esm_pipeline.model.checkpoints.config_check import require_config
from esm_pipeline.model.checkpoints.hub import Checkpoint, resolve_checkpoint
from esm_pipeline.model.checkpoints.keywords import (
    WITHOUT_EFFECT,
    hub_options,
    normalize_kwargs,
    refuse,
)
from esm_pipeline.model.checkpoints.loading import (
    LoadingInfo,
    gc_paused,
    initialise,
    load_weights,
)
from esm_pipeline.model.checkpoints.saving import save_checkpoint
from esm_pipeline.model.checkpoints.weight_files import open_tensors, tensors_of_state
from esm_pipeline.model.checkpoints.weights import accept_reference_state, complete_state
from esm_pipeline.model.config import EsmConfig, named_dtype
from esm_pipeline.model.encoder import Checkpointing
from esm_pipeline.model.module_utils import ModuleUtils
from esm_pipeline.model.pruned_heads import (
    merge_pruned_heads,
    missing_heads,
    read_pruned_heads,
)
from esm_pipeline.model.pruning import prune_layer
from esm_pipeline.model.vocabulary import resized_rows, target_count

M = TypeVar("M", bound="EsmPreTrainedModel")
STATE_DICT = "state_dict"
"""Name of a checkpoint that consists of the weights given by the caller."""


class EsmPreTrainedModel(ModuleUtils):
    """Base of the ESM models."""

    config_class = EsmConfig
    base_model_prefix = "esm"
    main_input_name = "input_ids"
    framework = "pt"
    supports_gradient_checkpointing = True
    _no_split_modules: tuple[str, ...] = ("EsmLayer", "EsmDecoderLayer", "EsmEmbeddings")
    """Classes of modules that tools do not split between devices."""

    _tied_weights_keys: tuple[str, ...] | None = None
    _keys_to_ignore_on_save = None
    name_or_path: str = ""
    source: Path | None = None
    """The folder or fair-esm file of the weights."""

    _requiring: RemovableHandle | None = None

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        config.require_supported()
        self.config = config
        self.register_load_state_dict_pre_hook(accept_reference_state)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(complete_state)  # type: ignore[no-untyped-call]

    def post_init(self) -> None:
        """Random weights as in the reference: normal, norms at one, biases at zero."""
        if all(parameter.is_meta for parameter in self.parameters()):
            return  # they are filled later, mostly from a checkpoint
        for module in self.modules():
            self._init_weights(module)

    init_weights = post_init

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights of one module; a class in a script may override this."""
        initialise(module, self.config.initializer_range)

    def precision_of(self, name: str) -> torch.dtype | None:
        """The dtype that a parameter is always loaded in; None for the requested one."""
        return None

    def can_generate(self) -> bool:
        """False: no model here generates text."""
        return False

    def enable_input_require_grads(self) -> None:
        """Give the output of the token embedding a gradient, for adapters on frozen weights."""
        self.require_original("enable_input_require_grads")
        self.disable_input_require_grads()
        embedding = self.get_input_embeddings()
        self._requiring = embedding.register_forward_hook(
            lambda *call: call[2].requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._requiring is not None:
            self._requiring.remove()
            self._requiring = None

    @property
    def base_model(self) -> Any:
        """The `EsmModel` inside a model with a head; an `EsmModel` itself."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, (V, D)."""
        embedding: nn.Embedding = self.base_model.embeddings.word_embeddings
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding; a head that is tied to it follows."""
        self.base_model.embeddings.word_embeddings = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The last layer of a head that predicts tokens; None for other models."""
        return None

    def tie_weights(self) -> None:
        """Share the token embedding with a head that predicts tokens, if the config says so."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Remove the last tokens, or add tokens with random weights; returns the token embedding.

        A head that predicts tokens is resized too, its new biases zero, and `config.vocab_size` is
        set. Create the optimizer afterwards. Raises InputError for a number that would remove the
        padding or mask token.
        """
        count = target_count(new_num_tokens, pad_to_multiple_of, self.config)
        embedding = self.get_input_embeddings()
        embedding.weight = resized_rows(embedding.weight, count, self.config.initializer_range)
        embedding.num_embeddings = self.config.vocab_size = count
        self.resize_output(count)
        self.tie_weights()
        return embedding

    def resize_output(self, count: int) -> None:
        """Resize a head that predicts tokens to `count` tokens."""

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Cut heads out of layers for good: layer (from 0; −1 for the last) → its heads.

        A head keeps its number when others are pruned. The states equal those with a head mask of
        zeros there; `config.pruned_heads` records it for loading the saved model. Create the
        optimizer afterwards. Raises InputError for heads that the model lacks, and for an optimized
        model.
        """
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        chosen = read_pruned_heads(heads_to_prune, layers)
        pruned = merge_pruned_heads(self.config.pruned_heads, chosen)
        wrong = missing_heads(pruned, layers, heads)
        if wrong:
            raise InputError(f"prune_heads: {wrong}")
        self.require_original("prune_heads")
        for number in chosen:
            prune_layer(self.base_model.encoder.layers[number], pruned[number])
        self.config.pruned_heads = pruned

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, keep only the inputs of layers and recompute the rest in the backward pass.

        It saves memory and takes a third more time; gradients are the same. The keywords are those
        of `torch.utils.checkpoint.checkpoint`; `use_reentrant`, which would lose the gradients
        above frozen embeddings, is always False. `every_n_layers`: only the first of each n layers
        does so. `offload`: what is kept moves to CPU memory. Raises InputError.
        """
        self.require_original("gradient_checkpointing_enable")
        if type(every_n_layers) is not int or every_n_layers < 1:
            raise InputError(f"every_n_layers is {every_n_layers!r}; give a whole number above 0")
        keywords = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.base_model.encoder.checkpointing = Checkpointing(keywords, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that gradients need, as by default."""
        self.base_model.encoder.checkpointing = None

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Name of `gradient_checkpointing_enable` in transformers 5."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Name of `gradient_checkpointing_disable` in transformers 5."""
        self.gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed for gradients."""
        return self.base_model.encoder.checkpointing is not None

    is_activation_checkpointing = is_gradient_checkpointing

    @overload
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        *model_args: object,
        config: EsmConfig | str | os.PathLike[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        output_loading_info: Literal[False] = False,
        **options: object,
    ) -> Self: ...
    @overload
    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        *model_args: object,
        config: EsmConfig | str | os.PathLike[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        output_loading_info: Literal[True],
        **options: object,
    ) -> tuple[Self, LoadingInfo]: ...
    @classmethod
    @gc_paused()
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str] | None = None,
        *model_args: Any,
        config: EsmConfig | str | os.PathLike[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        output_loading_info: bool = False,
        **options: Any,
    ) -> Self | tuple[Self, LoadingInfo]:
        """Load a folder, a fair-esm file, a hub id or "demo"; the model is in evaluation mode.

        `revision`, `cache_dir`, `local_files_only` and `token` say how to find it. `dtype` (or
        `torch_dtype`) is the precision: float32 by default, "auto" for that of the file. Other
        keywords and positional arguments go to the class (`add_pooling_layer`) or replace settings
        of the config. `config` replaces the checkpoint's own and `state_dict` its weights; with
        both, no checkpoint is needed. With `output_loading_info`, returns (model, dict) with
        missing and unused keys. A missing pooler or classifier is initialised with a warning; so
        are modules that a class in a script adds, and with `ignore_mismatched_sizes` all weights
        whose shape is not the config's. Raises WeightsError for any other missing or unexpected
        key, and for a checkpoint that cannot be read. With `device="meta"`, only the headers of the
        files are read and checked.
        """
        caller = f"{cls.__name__}.from_pretrained"
        if path_or_hub_id is None and state_dict is not None and config is not None:
            path_or_hub_id = STATE_DICT
        name, options = normalize_kwargs(caller, path_or_hub_id, options)
        where = hub_options(name, options)
        known = inspect.signature(cls).parameters.keys() - {"config"}
        arguments = {key: options.pop(key) for key in known if key in options}
        checkpoint = Checkpoint(name, Path(name), ())
        if state_dict is None:
            checkpoint = cls._find_checkpoint(name, needs_config=config is None, **where)
        settings = cls._config_for(checkpoint, config, where, options)
        files, adapter = checkpoint.weight_files, Adapter.of(checkpoint)
        stored_tensors = open_tensors(files) if state_dict is None else tensors_of_state(state_dict)
        require_merged(stored_tensors, name)
        if adapter is not None:
            stored_tensors = adapter.merged(stored_tensors)
            settings.tie_word_embeddings = settings.tie_word_embeddings and not adapter.unties
        require_config(
            settings, stored_tensors, checkpoint.name, counts_only=ignore_mismatched_sizes
        )
        with nullcontext() if cls.is_foreign() else without_weights():
            model = cls(settings, *model_args, **arguments)
        settings.name_or_path = name
        info = load_weights(
            model,
            checkpoint,
            stored_tensors,
            read_dtype(dtype if dtype is not None else torch_dtype),
            device,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        model.name_or_path = checkpoint.name
        model.source = checkpoint.source
        model.eval()
        return (model, info) if output_loading_info else model

    @classmethod
    def _find_checkpoint(cls, name: str, **options: Any) -> Checkpoint:
        """The checkpoint that `name` means for this class; see `resolve_checkpoint`."""
        return resolve_checkpoint(name, **options)

    @classmethod
    def _config_for(
        cls,
        checkpoint: Checkpoint,
        config: EsmConfig | str | os.PathLike[str] | None,
        where: dict[str, Any],
        options: dict[str, Any],
    ) -> EsmConfig:
        """The config that `from_pretrained` was given, or read, with settings from `options`.

        `where`: how to find the base model of an adapter. Raises InputError for settings in
        addition to a config object.
        """
        if config is not None and not isinstance(config, (str, os.PathLike)):
            if options:
                raise InputError(
                    f"{cls.__name__}.from_pretrained: with a config, leave out {', '.join(options)}"
                )
            return config
        source = checkpoint.source if config is None else config
        followed = config is None and checkpoint.adapter  # to its base model
        at = {**where, **checkpoint.where} if followed else {}
        settings: EsmConfig = cls.config_class.from_pretrained(source, **at, **options)
        return settings

    @classmethod
    def _from_config(
        cls: type[M],
        config: EsmConfig,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> M:
        """A model with random weights, in training mode, as in the reference."""
        refuse(f"{cls.__name__}._from_config", options)
        options = {key: options[key] for key in options.keys() - WITHOUT_EFFECT}
        given = dtype if dtype is not None else torch_dtype
        wanted = config.torch_dtype if given == "auto" else read_dtype(given)
        return cls(config, **options).to(wanted or torch.float32)

    @classmethod
    def is_foreign(cls) -> bool:
        """Whether the class is defined outside this package, with modules unknown here."""
        return cls.__module__.split(".")[0] != __name__.split(".")[0]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: Any = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        **options: Any,
    ) -> None:
        """Write config and weights into a folder, in the layout of transformers 4.37.2.

        Weights of more than `max_shard_size` (bytes, or text such as "500MB") are split into shards
        with an index. `state_dict` replaces the model's own weights. Without `is_main_process`,
        nothing is written. An error leaves the folder as it was. Raises InputError for an optimized
        model, and for the pickled layout, which is read but not written; `save_function` is
        therefore never called.
        """
        refuse("save_pretrained", {"push_to_hub": push_to_hub, "variant": variant, **options})
        require_folder(save_directory)
        if self.optimized:
            raise InputError("a model optimized for inference cannot be saved; save the original")
        if not safe_serialization:
            raise InputError("save_pretrained: pickles are not written; leave safe_serialization")
        if not is_main_process:
            return
        self.config.architectures = [type(self).__name__]
        self.config.torch_dtype = self.dtype
        save_checkpoint(self, save_directory, max_shard_size, state_dict)


class SkipInitialisation(TorchFunctionMode):
    """Within, new modules skip the random initialisation: their weights are filled later.

    On the meta device it would load PyTorch's compiler, which takes a second for nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within, new modules are on the meta device, without memory."""
    with torch.device("meta"), SkipInitialisation():
        yield


def read_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """The requested dtype; None for the checkpoint's own ("auto"). Raises WeightsError."""
    if given == "auto":
        return None
    found = torch.float32 if given is None else named_dtype(given)
    if found is None or not found.is_floating_point:
        raise WeightsError(f"dtype '{given}' is not known; use float32, bfloat16 or auto")
    return found
