"""What the ESM classes share: construction, `from_pretrained`, `save_pretrained`.

Peer: transformers `PreTrainedModel`, cut down to what its users call on ESM models.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.files import require_folder
from esm_pipeline.model.checkpoints.adapters import Adapter, require_merged
from esm_pipeline.model.checkpoints.hub import Checkpoint, resolve_checkpoint
from esm_pipeline.model.checkpoints.keywords import WITHOUT_EFFECT, hub_options, refuse, settle
from esm_pipeline.model.checkpoints.loading import (
    entries_of,
    initialise,
    load_weights,
    open_entries,
    uncollected,
)
from esm_pipeline.model.checkpoints.saving import save_checkpoint
from esm_pipeline.model.checkpoints.sizes import require_config
from esm_pipeline.model.checkpoints.weights import accept_reference_state, complete_state
from esm_pipeline.model.config import EsmConfig, named_dtype
from esm_pipeline.model.encoder import Checkpointing
from esm_pipeline.model.module_utils import ModuleUtils
from esm_pipeline.model.pruning import impossible, prune_layer, read_pruned, union
from esm_pipeline.model.vocabulary import resized_rows, target_count

M = TypeVar("M", bound="EsmPreTrainedModel")
STATE_DICT = "state_dict"
"""Name of a checkpoint that is none but the weights a caller gave."""


class EsmPreTrainedModel(ModuleUtils):
    """Base of the ESM models."""

    config_class = EsmConfig
    base_model_prefix = "esm"
    main_input_name = "input_ids"
    framework = "pt"
    supports_gradient_checkpointing = True
    _no_split_modules: tuple[str, ...] = ("EsmLayer", "EsmDecoderLayer", "EsmEmbeddings")
    """Classes of modules that tools leave on one device."""

    _tied_weights_keys: tuple[str, ...] | None = None
    _keys_to_ignore_on_save = None
    name_or_path: str = ""
    source: Path | None = None
    """The folder, or the fair-esm file, that the weights are from."""

    _requiring: RemovableHandle | None = None

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        config.require_supported()
        self.config = config
        self.register_load_state_dict_pre_hook(accept_reference_state)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(complete_state)  # type: ignore[no-untyped-call]

    def post_init(self) -> None:
        """Random weights as the reference starts from: normal, norms at one, biases at zero."""
        if all(parameter.is_meta for parameter in self.parameters()):
            return  # they get a checkpoint's, or theirs later
        for module in self.modules():
            self._init_weights(module)

    init_weights = post_init

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights for one module; a script's own class may have others."""
        initialise(module, self.config.initializer_range)

    def precision_of(self, name: str) -> torch.dtype | None:
        """What a parameter is loaded in, whatever was asked for; None for what was."""
        return None

    def can_generate(self) -> bool:
        """No model here generates text."""
        return False

    def enable_input_require_grads(self) -> None:
        """Let gradients reach what leaves the token embedding, for adapters on frozen weights."""
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
        """The `EsmModel` within a model with a head, or this itself."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, (V, D)."""
        embedding: nn.Embedding = self.base_model.embeddings.word_embeddings
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another token embedding in its place; a head tied to it follows."""
        self.base_model.embeddings.word_embeddings = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The last layer of a head that predicts tokens, None for others."""
        return None

    def tie_weights(self) -> None:
        """Let a head that predicts tokens share the token embedding, if the config says so."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Cut the vocabulary, or add tokens with random weights; returns the token embedding.

        A head that predicts tokens follows, its new biases zero, and so does `config.vocab_size`.
        Optimizers should be made afterwards. Raises InputError for a number that leaves out the
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
        """Give a head that predicts tokens `count` of them."""

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Cut heads out of layers for good: layer, from 0 or −1 for the last, to its heads.

        A head keeps its number when others go. The states are those of a head mask with zeros
        there; `config.pruned_heads` tells it to whoever loads the saved model. Optimizers should be
        made afterwards. Raises InputError for heads that the model lacks, and for what
        `optimize_for_inference` made.
        """
        chosen = read_pruned(heads_to_prune, self.config.num_hidden_layers)
        pruned = union(self.config.pruned_heads, chosen)
        wrong = impossible(pruned, self.config)
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
        """In training, keep what enters each layer alone and compute the rest again backwards.

        Less memory for a third more time; gradients are the same. The keywords are those of
        `torch.utils.checkpoint.checkpoint`, but `use_reentrant`, which would lose the gradients
        above frozen embeddings, is always False. `every_n_layers`: of these the first alone.
        `offload`: what is kept waits in the memory of the CPU. Raises InputError.
        """
        self.require_original("gradient_checkpointing_enable")
        if type(every_n_layers) is not int or every_n_layers < 1:
            raise InputError(f"every_n_layers is {every_n_layers!r}; give a whole number above 0")
        keywords = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.base_model.encoder.checkpointing = Checkpointing(keywords, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all that gradients need, as at first."""
        self.base_model.encoder.checkpointing = None

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Transformers 5's name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Transformers 5's name of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again for gradients."""
        return self.base_model.encoder.checkpointing is not None

    is_activation_checkpointing = is_gradient_checkpointing

    @classmethod
    @uncollected()
    def from_pretrained(
        cls: type[M],
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
    ) -> Any:
        """Load a folder, a fair-esm file, a hub id or "demo"; the model is in evaluation mode.

        `revision`, `cache_dir`, `local_files_only` and `token` say where from; `dtype` (also spelt
        `torch_dtype`) is the precision, float32 unless told, "auto" for the file's; other keywords,
        and positional arguments, go to the class (`add_pooling_layer`), or replace settings of the
        config. `config` stands for the checkpoint's own, and `state_dict` for its weights; with
        both, no checkpoint is needed.
        With `output_loading_info`, returns (model, dict): the keys that were missing and left out.
        A missing pooler or classifier is initialised with a warning, so is what a script's own
        class adds to the encoder, and with `ignore_mismatched_sizes` every weight of another shape
        than the config's. Raises WeightsError for any other missing or unexpected key, and for a
        checkpoint that cannot be read. With `device="meta"` only the files' headers are read and
        judged.
        """
        caller = f"{cls.__name__}.from_pretrained"
        if path_or_hub_id is None and state_dict is not None and config is not None:
            path_or_hub_id = STATE_DICT
        name, options = settle(caller, path_or_hub_id, options)
        where = hub_options(name, options)
        known = inspect.signature(cls).parameters.keys() - {"config"}
        arguments = {key: options.pop(key) for key in known if key in options}
        checkpoint = Checkpoint(name, Path(name), ())
        if state_dict is None:
            checkpoint = resolve_checkpoint(name, needs_config=config is None, **where)
        if config is None or isinstance(config, (str, os.PathLike)):
            source = checkpoint.source if config is None else config
            followed = config is None and checkpoint.adapter  # to its base model
            at = {**where, **checkpoint.where} if followed else {}
            settings: EsmConfig = cls.config_class.from_pretrained(source, **at, **options)
        elif options:
            raise InputError(f"{caller}: with a config, leave out {', '.join(options)}")
        else:
            settings = config
        files, adapter = checkpoint.weight_files, Adapter.of(checkpoint)
        entries = open_entries(files) if state_dict is None else entries_of(state_dict)
        require_merged(entries, name)
        if adapter is not None:
            entries = adapter.merged(entries)
            settings.tie_word_embeddings = settings.tie_word_embeddings and not adapter.unties
        require_config(settings, entries, checkpoint.name, counts_only=ignore_mismatched_sizes)
        with nullcontext() if cls.is_foreign() else without_weights():
            model = cls(settings, *model_args, **arguments)
        settings.name_or_path = name
        info = load_weights(
            model,
            checkpoint,
            entries,
            read_dtype(dtype if dtype is not None else torch_dtype),
            device,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        model.name_or_path = checkpoint.name
        model.source = checkpoint.source
        model.eval()
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_config(
        cls: type[M],
        config: EsmConfig,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> M:
        """A model with random weights, in training mode, as the reference's classes make it."""
        refuse(f"{cls.__name__}._from_config", options)
        options = {key: options[key] for key in options.keys() - WITHOUT_EFFECT}
        given = dtype if dtype is not None else torch_dtype
        wanted = config.torch_dtype if given == "auto" else read_dtype(given)
        return cls(config, **options).to(wanted or torch.float32)

    @classmethod
    def is_foreign(cls) -> bool:
        """Whether the class is a script's own, of whose weights nothing is known here."""
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

        Weights of more than `max_shard_size` (bytes, or text such as "500MB") come in shards with
        an index. `state_dict` stands for the model's own weights; processes that are not
        `is_main_process` write nothing. An error leaves the folder as it was. Raises InputError for
        a model that `optimize_for_inference` made, and for the pickled layout, which is read but
        not written, so that `save_function` is never called.
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


class Unfilled(TorchFunctionMode):
    """Modules made within draw no random weights: they get a checkpoint's, or theirs later.

    Drawing on the meta device would load PyTorch's compiler, a second for nothing.
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
    """Modules made within have no memory yet."""
    with torch.device("meta"), Unfilled():
        yield


def read_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype asked for; None stands for the checkpoint's own. Raises WeightsError."""
    if given == "auto":
        return None
    found = torch.float32 if given is None else named_dtype(given)
    if found is None or not found.is_floating_point:
        raise WeightsError(f"dtype '{given}' is not known; use float32, bfloat16 or auto")
    return found
