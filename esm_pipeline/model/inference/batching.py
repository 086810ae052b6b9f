"""Batches by token budget, threads, splitting when memory runs out; `iter_packed` uses all three.

The longest sequences go first: neighbours have similar lengths, and memory runs out at the start if
at all. A batch that does not fit into memory is halved and computed in parts. A sequence that does
not fit while other threads compute is tried again after they finish. So only a sequence that does
not fit alone is given up.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import chain
from threading import Event
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import CapacityError, InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.heads import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
)
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.module_utils import plain_model
from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer
from esm_pipeline.nucleotides import KEEP_NUCLEOTIDES, NUCLEOTIDES, nucleotides_in

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|std::bad_alloc"  # PyTorch on the CPU
    r"|(CUDA|HIP) error: out of memory|(CUDA|HIP|MPS backend) out of memory"
    r"|could not (create|execute) a (primitive|memory)"  # oneDNN
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"
)
"""Messages of a RuntimeError that mean the same as torch.OutOfMemoryError.

CUDA libraries without memory for their own workspace report that they are not initialized.
"""

GAP_LETTER = re.compile(r"[.\-](?![^<]*>)")
"""A gap outside tokens such as `<null_1>`."""

CPU_TOKENS = 4096
"""Most tokens in a batch on the CPU: data that fits into its caches is computed faster."""
LEAST_TOKENS = 512
"""A batch is not made smaller than this many tokens to give other threads work."""

SPECIAL_TOKEN_COUNT = 2
"""BOS and EOS, which every sequence of residues has around it."""

WithLogits: TypeAlias = EsmForMaskedLM | EsmForSequenceClassification | EsmForTokenClassification
R = TypeVar("R")


def token_batches(lengths: NDArray[Any], token_budget: int, workers: int = 1) -> Iterator[Int64]:
    """Cut sequences of `lengths` residues into batches, longest first, equals in their order.

    Yields indices into `lengths`, each once. A batch has at most `token_budget` tokens, with BOS
    and EOS, unless it is a single sequence. For several `workers` the last batches are smaller, so
    that all workers finish at about the same time.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    ends = np.cumsum(np.asarray(lengths, np.int64)[order] + SPECIAL_TOKEN_COUNT)
    start = spent = 0
    while start < len(order):
        budget = token_budget
        if workers > 1:
            left = int(ends[-1]) - spent
            budget = min(budget, max(LEAST_TOKENS, left // (2 * workers)))
        stop = max(start + 1, int(np.searchsorted(ends, spent + budget, side="right")))
        yield order[start:stop]
        start, spent = stop, int(ends[stop - 1])


class BatchResult(NamedTuple, Generic[R]):
    """A batch or a part of it; `result` is None if its only sequence does not fit into memory."""

    part: Int64
    result: R | None


def run_splitting(
    batch: Int64, compute: Callable[[Int64], R], *fallbacks: Callable[[Int64], R]
) -> Iterator[BatchResult[R]]:
    """Compute `batch`, or its halves if memory runs out, and so on down to single sequences.

    A sequence that does not fit alone is computed by the first of the `fallbacks` for which memory
    suffices. Yields the parts in their order, and keeps no result while it computes the next.
    Errors that are not about memory pass through.
    """
    attempts = (compute, *fallbacks)
    pending = [(batch, 0)]
    while pending:
        part, attempt = pending.pop()
        try:
            found = BatchResult(part, attempts[attempt](part))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield found
            del found
            continue
        release_memory()  # the error is gone by now, and all that its frames kept alive
        if len(part) > 1:
            middle = len(part) // 2
            pending += [(part[middle:], attempt), (part[:middle], attempt)]
        elif attempt < len(fallbacks):
            pending.append((part, attempt + 1))
        else:
            yield BatchResult(part, None)


def compute_batches(
    lengths: NDArray[Any],
    token_budget: int,
    compute: Callable[[Int64], R],
    device: torch.device,
) -> Iterator[BatchResult[R]]:
    """Compute sequences of `lengths` residues in batches, longest first; parts in that order.

    On the CPU, batches have up to `CPU_TOKENS` tokens, and the threads that PyTorch may use compute
    several at once: together at most `token_budget` tokens, or one sequence longer than that.
    `compute` is called in other threads and must enter PyTorch's modes itself.
    """
    if device.type != "cpu":
        for batch in token_batches(lengths, token_budget):
            yield from run_splitting(batch, compute)
        return
    lengths = np.asarray(lengths, np.int64)
    threads = 1 if torch.is_autocast_enabled("cpu") else torch.get_num_threads()
    workers = max(1, min(threads, token_budget // LEAST_TOKENS))
    share = min(max(token_budget // workers, 1), CPU_TOKENS)
    batches = list(token_batches(lengths, share, workers))
    # batches longer than a share come first and get all threads
    alone = sum(int(lengths[batch[0]]) + SPECIAL_TOKEN_COUNT > share for batch in batches)
    if workers == 1 or len(batches) - alone < 2:
        alone = len(batches)
    for batch in batches[:alone]:
        yield from run_splitting(batch, compute)
    if alone < len(batches):
        yield from run_in_threads(batches[alone:], compute, workers, threads // workers)


def run_in_threads(
    batches: Sequence[Int64], compute: Callable[[Int64], R], workers: int, threads: int
) -> Iterator[BatchResult[R]]:
    """Compute `batches`, `workers` at a time with `threads` each; parts in the order of `batches`.

    Sequences that did not fit while other threads computed come last, each tried again alone. After
    an error in one batch, or when the caller stops reading, the others stop at their next part.
    """
    stop, retries = Event(), list[Int64]()

    def compute_unless_stopped(part: Int64) -> R:
        if stop.is_set():
            raise CancelledError
        return compute(part)

    def run(batch: Int64) -> list[BatchResult[R]]:
        found: list[BatchResult[R]] = []
        try:
            for one in run_splitting(batch, compute_unless_stopped):
                found.append(one)
        except CancelledError:
            pass  # another thread raises the error
        except BaseException:
            stop.set()
            raise
        return found

    def fitting(found: list[BatchResult[R]]) -> Iterator[BatchResult[R]]:
        retries.extend(part for part, result in found if result is None)
        return (one for one in found if one.result is not None)

    pool = ThreadPoolExecutor(workers, "batch", torch.set_num_threads, (threads,))
    ahead: deque[Future[list[BatchResult[R]]]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(run, batch))
            if len(ahead) > workers:
                yield from fitting(ahead.popleft().result())
        while ahead:
            yield from fitting(ahead.popleft().result())
    finally:
        stop.set()  # batches that have not started end at once
        pool.shutdown()
        torch.set_num_threads(torch.get_num_threads())  # for threads made later, as for this one
    yield from chain.from_iterable(run_splitting(part, compute) for part in retries)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on the device or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def release_memory() -> None:
    """Return the memory that PyTorch keeps for later use to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def pack(
    sequences: Sequence[str], tokenizer: EsmTokenizer, device: torch.device
) -> tuple[Tensor, PackedLayout]:
    """Token ids (T,) int64 of all `sequences` end to end, and their layout, on `device`."""
    tokens = [tokenizer.encode_residues(sequence) for sequence in sequences]
    layout = PackedLayout.from_lengths([len(one) for one in tokens], device)
    return torch.from_numpy(np.concatenate(tokens)).to(device), layout


def residue_states(hidden: Tensor, layout: PackedLayout) -> Tensor:
    """(T, D) → (sum of R, D): the residues of all sequences, without BOS and EOS."""
    is_residue = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    is_residue[layout.firsts] = is_residue[layout.cumulative[1:] - 1] = False
    return hidden[is_residue]


def iter_packed(
    model: EsmModel | WithLogits,
    sequences: Sequence[str],
    *,
    tokenizer: EsmTokenizer | None = None,
    token_budget: int = 16_384,
    output: Literal["logits", "representation"] = "logits",
    layer: int = -1,
    nucleotides: Literal["refuse", "keep"] = "refuse",
) -> Iterator[tuple[int, Tensor]]:
    """Run `model` on many sequences, packed; yield `(i, tensor)` for each, in the order computed.

    `i` indexes `sequences`, any Sequence of str, of which a few batches are in memory at a time; an
    array or a table's column is made a list. `output` is "logits", (L, V), for classifiers
    (L, num_labels) or (num_labels,), or the "representation" (L, D) of `layer` (0 to n, -1 is n).
    L includes BOS and EOS. Tensors are on the model's device, without gradients, and views of their
    batch's tensor: clone one to keep it without the others.

    The tokenizer is the checkpoint's, or else the standard alphabet. It reads tokens such as
    `<mask>`; lower case, white space and a `*` at the end are handled as by `shard`. DNA and RNA
    are refused, or their letters kept as residues. On the CPU, the threads that PyTorch may use
    compute several batches at once, with `token_budget` tokens in total. A model wrapped by peft,
    `torch.compile` or DDP is unwrapped; trained prompts are refused.

    Raises InputError at once for unusable arguments, CapacityError for a sequence that does not fit
    into memory alone.
    """
    if output not in ("logits", "representation"):
        raise InputError(f"output '{output}' is not known; choose 'logits' or 'representation'")
    model = cast(EsmModel | WithLogits, plain_model(model))
    if output == "logits" and not hasattr(model, "packed_logits"):
        raise InputError(
            f"{type(model).__name__} has no logits; load EsmForMaskedLM, or set "
            "output='representation'"
        )
    check_token_budget(token_budget)
    encoder = cast(EsmModel, getattr(model, "esm", model))
    check_layer(layer, encoder.config.num_hidden_layers)
    if nucleotides not in NUCLEOTIDES:
        raise InputError(f"nucleotides {nucleotides!r} is not 'refuse' or 'keep'")
    sequences = as_sequence(sequences)
    chosen = default_tokenizer(model) if tokenizer is None else tokenizer
    lengths = lengths_of(sequences, chosen, nucleotides)
    check_lengths(lengths, encoder.max_residues)

    @torch.no_grad()
    def compute(part: Int64) -> list[Tensor]:
        tokens, layout = pack([sequences[i] for i in part.tolist()], chosen, model.device)
        if output == "logits":
            values = cast(WithLogits, model).packed_logits(tokens, layout)
            if isinstance(model, EsmForSequenceClassification):
                return list(values)  # (num_labels,) for each sequence
        else:
            values = encoder.represent(tokens, layout, [layer]).hidden[layer]
        return list(torch.split(values, layout.lengths))

    return sequence_results(compute_batches(lengths, token_budget, compute, model.device), lengths)


def sequence_results(
    batches: Iterator[BatchResult[list[Tensor]]], lengths: Int64
) -> Iterator[tuple[int, Tensor]]:
    """`(i, tensor)` of each sequence. Raises CapacityError for one that does not fit alone."""
    for part, results in batches:
        if results is None:
            place = int(part[0])
            raise CapacityError(
                f"sequence {place} ({lengths[place]} residues) does not fit into memory alone; "
                "use a machine with more"
            )
        places = zip(part.tolist(), results, strict=True)
        del results  # the next batch may need the memory
        yield from places
        del places


def as_sequence(sequences: object) -> Sequence[Any]:
    """`sequences`, as a list if it is an array or a column. Raises InputError for other types."""
    if not isinstance(sequences, Sequence) and hasattr(sequences, "tolist"):
        sequences = sequences.tolist()
    if not isinstance(sequences, Sequence) or isinstance(sequences, (str, bytes, bytearray)):
        kind = type(sequences).__name__
        raise InputError(f"sequences are of type {kind}; pass a list of str")
    return sequences


def lengths_of(sequences: Sequence[Any], tokenizer: EsmTokenizer, nucleotides: str) -> Int64:
    """(N,) tokens of each sequence, without BOS and EOS.

    Raises InputError with the index of a sequence that is not a str, has gaps or other characters
    that are not residues, or looks like nucleotides, unless these are kept.
    """
    lengths = np.empty(len(sequences), np.int64)
    for place, sequence in enumerate(sequences):
        if not isinstance(sequence, str):
            kind = type(sequence).__name__
            raise InputError(f"sequence {place} is of type {kind}; pass a list of str")
        try:
            lengths[place] = len(tokenizer.residue_ids(sequence))
        except InputError as error:
            raise InputError(f"sequence {place}: {error}") from None
        if not lengths[place]:
            raise InputError(f"sequence {place} has no residues; leave it out")
        if ("-" in sequence or "." in sequence) and (gap := GAP_LETTER.search(sequence)):
            what = f"gap {gap[0]!r} at place {gap.start() + 1}"
            raise InputError(f"sequence {place}: {what}; remove the gaps")
        if nucleotides == "refuse" and "L" not in sequence and (kind := nucleotides_of(sequence)):
            raise InputError(f"sequence {place} looks like {kind}; {KEEP_NUCLEOTIDES}")
    return lengths


def nucleotides_of(sequence: str) -> str:
    """`nucleotides_in` for a sequence in upper or lower case, with white space."""
    return nucleotides_in("".join(sequence.split()).upper().encode("utf-8", "replace"))


def check_token_budget(token_budget: Any) -> None:
    """Raise InputError unless `token_budget` is a positive whole number."""
    whole = isinstance(token_budget, (int, np.integer)) and not isinstance(token_budget, bool)
    if not whole or token_budget < 1:
        raise InputError(f"token_budget {token_budget!r} is not a positive whole number")


def check_lengths(lengths: Int64, limit: int | None) -> None:
    """Raise InputError for the longest sequence if the model has only `limit` positions."""
    if limit is not None and lengths.size and lengths.max() > limit:
        place = int(lengths.argmax())
        raise InputError(
            f"sequence {place} has {lengths[place]} residues, the model has positions for {limit}; "
            "cut it"
        )


def check_layer(layer: int, count: int) -> None:
    """Raise InputError unless a model of `count` layers has `layer`, an int; -1 is the last."""
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise InputError(
            f"layer {layer!r} is not a whole number; give one from 0 to {count}, or -1"
        )
    if not -1 <= layer <= count:
        raise InputError(f"layer {layer} does not exist; the model has layers 0 to {count}")


def default_tokenizer(model: EsmPreTrainedModel) -> EsmTokenizer:
    """The tokenizer of the checkpoint that `model` was loaded from, else the standard one."""
    if model.source:
        return EsmTokenizer.from_pretrained(model.source)
    return EsmTokenizer.standard()
