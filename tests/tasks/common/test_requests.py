"""What jobs ask for: never too little, not much too much, and one line where it is impossible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.footprint import LINKER_RESIDUES
from esm_pipeline.formats.bundles import Bundle
from esm_pipeline.model import EsmConfig, EsmForProteinFolding, resolve_checkpoint
from esm_pipeline.model.folding.demo import demo_checkpoint
from esm_pipeline.model.folding.memory import fold_memory
from esm_pipeline.settings.sections import (
    ClassifySettings,
    ComputeSettings,
    EmbedSettings,
    FoldSettings,
    JobLimits,
    StrategySettings,
)
from esm_pipeline.tasks.classify.work import classify_need
from esm_pipeline.tasks.common.model_file import describe_model, write_model_file
from esm_pipeline.tasks.common.requests import IDLE_MB, LEAST_MINUTES, Need, Request, model_size
from esm_pipeline.tasks.embed.work import embed_need
from esm_pipeline.tasks.fold.work import fold_need, folded_lengths
from esm_pipeline.tasks.score.work import saturation_need, variants_need

ESM2 = {
    "8M": (6, 320, 7_500_000),
    "35M": (12, 480, 33_500_000),
    "150M": (30, 640, 148_000_000),
    "650M": (33, 1280, 651_000_000),
}
"""Layers, width and parameters."""

PEAKS = [
    ("8M", "float32", 1, 10, 1, 347),
    ("8M", "float32", 1, 300, 33, 429),
    ("8M", "float32", 2, 300, 66, 515),
    ("8M", "bfloat16", 1, 300, 33, 364),
    ("8M", "bfloat16", 2, 300, 66, 419),
    ("8M", "int8", 1, 10, 1, 353),
    ("8M", "int8", 2, 300, 66, 466),
    ("35M", "float32", 1, 10, 1, 560),
    ("35M", "float32", 1, 300, 33, 705),
    ("35M", "float32", 1, 3000, 2, 683),
    ("35M", "float32", 2, 300, 66, 904),
    ("35M", "bfloat16", 1, 300, 33, 436),
    ("35M", "bfloat16", 2, 300, 66, 524),
    ("35M", "int8", 1, 300, 33, 737),
    ("35M", "int8", 2, 300, 66, 668),
    ("150M", "float32", 1, 10, 1, 1516),
    ("150M", "float32", 1, 300, 33, 1717),
    ("150M", "bfloat16", 1, 10, 1, 693),
    ("150M", "bfloat16", 1, 300, 33, 789),
    ("150M", "int8", 1, 10, 1, 1132),
    ("150M", "int8", 1, 300, 33, 1444),
]
"""Measured by bench_requests: size, dtype, threads, residues, sequences, and MB at the peak."""

CONTACTS_PEAK = 2068
"""MB at the peak of contacts of four sequences of 1,000 residues by 35M."""

NO_LIMITS = JobLimits()


def write_size(path: Path, layers: int, width: int, parameters: int, **changes: Any) -> Path:
    """A model file of a model of these sizes, which does not exist."""
    config = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": 20,
        "intermediate_size": 4 * width,
        "max_residues": None,
        **changes,
    }
    facts = {"name": "m", "revision": None, "weights_sha256": "0", "config": config}
    facts |= {"format": "esm-pipeline/model", "parameters": parameters}
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture
def esm2(tmp_path: Path) -> Callable[..., Path]:
    def make(size: str, **changes: Any) -> Path:
        return write_size(tmp_path / f"{size}.json", *ESM2[size], **changes)

    return make


def ask(
    need: Callable[..., Need],
    models: Path | list[Path],
    settings: ComputeSettings,
    lengths: list[int],
    *,
    threads: int | None = None,
    **changes: Any,
) -> Request:
    """What a job asks for in the first attempt, by default with the threads of its settings."""
    paths = models if isinstance(models, list) else [models]
    threads = settings.threads if threads is None else threads
    given = {"attempt": 1, "limits": NO_LIMITS, "where": "s/00000 1-of-2", **changes}
    found = need(paths, settings, np.array(lengths, np.int64), threads)
    return found.request(settings, threads=threads, **given)


@pytest.mark.parametrize(("size", "dtype", "threads", "residues", "count", "peak"), PEAKS)
def test_memory_is_enough_and_not_much_too_much(
    size, dtype, threads, residues, count, peak, esm2
) -> None:
    settings = EmbedSettings(dtype=dtype, threads=threads)
    found = ask(embed_need, esm2(size), settings, [residues] * count).mem_mb
    assert peak <= found <= 1.5 * peak + 300


def test_contacts_have_enough_memory(esm2) -> None:
    settings = EmbedSettings(include=["contacts"], threads=1)
    found = ask(embed_need, esm2("35M"), settings, [1000] * 4).mem_mb
    assert CONTACTS_PEAK <= found <= 1.5 * CONTACTS_PEAK


def test_another_attempt_asks_for_as_many_times_as_much(esm2) -> None:
    model, settings = esm2("150M"), EmbedSettings()
    first, second = (
        ask(embed_need, model, settings, [300] * 5000, attempt=number) for number in (1, 2)
    )
    assert second == (2 * first.mem_mb, 2 * first.runtime)
    limits = JobLimits(mem_mb=first.mem_mb + 1, runtime=first.runtime + 1)
    capped = ask(embed_need, model, settings, [300] * 5000, attempt=3, limits=limits)
    assert capped == (limits.mem_mb, limits.runtime)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            JobLimits(mem_mb=600),
            "s/00000 1-of-2: embed needs {} MB of memory, more than limits.mem_mb (600); raise it, "
            "skip the longest sequences, or lower embed.token_budget",
        ),
        (
            JobLimits(runtime=5),
            "s/00000 1-of-2: embed needs {} minutes, more than limits.runtime (5); raise it, "
            "lower embed.job_residues or set more shards; a single long sequence needs as much in "
            "any job",
        ),
    ],
)
def test_a_job_beyond_the_limits_is_refused_in_one_line(limits, message, esm2) -> None:
    model, settings = esm2("150M"), EmbedSettings()
    needed = ask(embed_need, model, settings, [300] * 5000)
    with pytest.raises(InputError) as raised:
        ask(embed_need, model, settings, [300] * 5000, limits=limits, attempt=1)
    number = needed.mem_mb if limits.mem_mb else needed.runtime
    assert str(raised.value) == message.format(f"{number:,}")


REQUESTS: dict[str, tuple[Callable[..., Need], ComputeSettings]] = {
    "embed": (embed_need, EmbedSettings(long="skip")),
    "classify": (classify_need, ClassifySettings(long="skip")),
    "saturation": (saturation_need, StrategySettings(long="skip")),
}


@pytest.mark.parametrize("task", REQUESTS)
def test_what_is_skipped_costs_nothing(task: str, esm2) -> None:
    request, settings = REQUESTS[task]
    short = esm2("650M", max_residues=1022)
    assert ask(request, short, settings, []) == (IDLE_MB, LEAST_MINUTES)
    assert ask(request, short, settings, [1023] * 50) == (IDLE_MB, LEAST_MINUTES)
    plain = ask(request, short, settings, [500] * 50)
    assert plain > (IDLE_MB, LEAST_MINUTES)
    assert ask(request, short, settings, [5000, *[500] * 50]) == plain
    cut = settings.model_copy(update={"long": "truncate"})
    assert ask(request, short, cut, [5000]) == ask(request, short, cut, [1022])


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=30),
    more=st.integers(1, 4000),
    task=st.sampled_from([*REQUESTS]),
)
def test_more_sequences_never_need_less(lengths, more, task, tmp_path) -> None:
    request, settings = REQUESTS[task]
    model = write_size(tmp_path / "one.json", *ESM2["35M"])
    few = ask(request, model, settings, lengths)
    many = ask(request, model, settings, [*lengths, more])
    assert many.mem_mb >= few.mem_mb
    assert many.runtime >= few.runtime


def test_memory_grows_with_what_it_depends_on(esm2) -> None:
    small, large = esm2("35M"), esm2("650M")
    lengths = [300] * 200

    def memory(model: Path, lengths: list[int] = lengths, **changes: Any) -> int:
        return ask(embed_need, model, EmbedSettings(**changes), lengths).mem_mb

    assert memory(large) - memory(small) > (651 - 33.5) * 4
    assert memory(large, dtype="bfloat16") < memory(large)
    assert memory(small, threads=4) > memory(small, threads=1)
    assert memory(small, token_budget=512, threads=4) < memory(small, threads=4)
    assert memory(small, [12_000]) > memory(small, [4000])
    contacts = memory(small, [6000], include=["contacts"])
    assert contacts - memory(small, [6000]) > 6000**2 * 6 / 1e6
    assert memory(small, include=["residue"], layers=[*range(13)]) > memory(small)


def test_time_is_that_of_the_operations(esm2) -> None:
    model = esm2("650M")

    def minutes(lengths: list[int], **changes: Any) -> int:
        return ask(embed_need, model, EmbedSettings(**changes), lengths).runtime

    one = minutes([300] * 3000, threads=1)
    operations = 3000 * 302 * (2 * 651e6 + 4 * 33 * 1280 * 302)
    assert operations / 20e9 / 60 <= one <= operations / 20e9 / 60 + 10
    assert minutes([300] * 3000, threads=4) == pytest.approx(one / 4, abs=10)
    assert minutes([300] * 3000, device="cuda") < one / 50
    assert minutes([3]) == LEAST_MINUTES
    told = ask(embed_need, model, EmbedSettings(), [300] * 3000, threads=4)
    assert told == ask(embed_need, model, EmbedSettings(threads=4), [300] * 3000)


def test_time_of_scores_is_that_of_all_passes(esm2) -> None:
    model, masked = esm2("150M"), StrategySettings(threads=1)

    def minutes(settings: StrategySettings) -> int:
        return ask(saturation_need, model, settings, [600] * 20).runtime

    def of_table(passes: Any, rows: int) -> Request:
        need = partial(variants_need, passes=passes, rows=rows)
        return ask(need, model, masked, [600] * 20)

    every = minutes(masked)
    passes = np.full(20, 600)
    assert of_table(passes, 20).runtime == every
    assert of_table(passes // 3, 20).runtime == pytest.approx(every / 3, abs=9)
    more = of_table(passes, 10_000_020).mem_mb - of_table(passes, 20).mem_mb
    assert more == pytest.approx(1300, abs=100), "some bytes for each row"
    plain = masked.model_copy(update={"strategy": "wt_marginal"})
    assert minutes(plain) < every / 100
    windows = masked.model_copy(update={"long": "window", "window": 302})
    assert minutes(windows) == pytest.approx(every / 2, rel=0.1)
    both = ask(saturation_need, [model, model], masked, [600] * 20)
    assert both.runtime == pytest.approx(2 * every, abs=10)
    assert both.mem_mb == ask(saturation_need, model, masked, [600] * 20).mem_mb


def test_a_missing_file_is_told_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with pytest.raises(FileNotFoundError) as raised:
        ask(embed_need, path, EmbedSettings(), [3])
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("missing", ["parameters", "config"])
def test_a_model_file_without_the_size(missing: str, tmp_path: Path) -> None:
    path = write_size(tmp_path / "m.json", 1, 8, 1000)
    facts = json.loads(path.read_text())
    del facts[missing]
    path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"does not tell the size .*; remove it, and run"):
        ask(embed_need, path, EmbedSettings(), [3])


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_size(tmp_path / "m.json", 1, 8, 1000)
    assert model_size(path).parameters == 1000
    write_size(path, 1, 8, 9000)
    os.utime(path, ns=(1, 1))
    assert model_size(path).parameters == 9000


def test_the_model_file_has_the_size_of_the_model(tmp_path: Path, rotary: Path) -> None:
    checkpoint = resolve_checkpoint(str(rotary))
    config = EsmConfig.from_pretrained(rotary)
    write_model_file(tmp_path / "m.json", describe_model(checkpoint, config))
    size = model_size(tmp_path / "m.json")
    assert (size.layers, size.width, size.feed_forward, size.heads) == (2, 16, 32, 2)
    assert (size.positions, size.folding) == (None, None)
    stored = (rotary / "model.safetensors").stat().st_size
    assert 0.8 * stored < 4 * size.parameters < stored


def write_demo_size(path: Path) -> Path:
    checkpoint = demo_checkpoint(EsmForProteinFolding)
    write_model_file(path, describe_model(checkpoint, EsmConfig.from_pretrained(checkpoint.source)))
    return path


def test_folding_asks_for_the_memory_of_its_formula(tmp_path: Path) -> None:
    """Its longest sequence alone, with the smallest chunk, or the one that is set."""
    model = write_demo_size(tmp_path / "fold.json")
    config = EsmConfig.from_pretrained(demo_checkpoint(EsmForProteinFolding).source)
    least = ask(fold_need, model, FoldSettings(), [10]).mem_mb

    def more(lengths: list[int], **changes: Any) -> float:
        return ask(fold_need, model, FoldSettings(**changes), lengths).mem_mb - least

    for chunk, size in (("auto", 16), (64, 64), ("none", None)):
        formula = fold_memory(config, 1, 3000, size).total / 1e6
        found = more([3000, 20], chunk_size=chunk)
        assert formula < found < 1.6 * formula, chunk
    assert more([3000], max_residues=2000) == 0
    assert more([3000], max_residues=2000, long="truncate") == more([2000])
    capped = more([3000], memory=1)
    assert 1000 <= capped < more([3000], memory=100)
    assert more([3000], memory=100) < 20_000, "a batch that large there is not"


def test_a_model_that_does_not_fold_is_refused(esm2) -> None:
    with pytest.raises(InputError, match=r"8M\.json: not a folding model; set fold\.model to one"):
        ask(fold_need, esm2("8M"), FoldSettings(), [10])


def test_a_complex_is_folded_with_its_linkers(tmp_path: Path) -> None:
    texts = ["MKVW:MK:AC", "MKVWAA", "MKV"]
    first = np.array([0, 12, 345])
    records = [f">{name}\n{text}\n" for name, text in zip(first, texts, strict=True)]
    ends = np.cumsum([0, *map(len, records)])
    length = np.array([len(text.replace(":", "")) for text in texts], np.int32)
    digest = np.zeros(3, np.uint64)
    bundle = Bundle(tmp_path / "b.fasta", first, length, ends, digest, 1, "")
    assert folded_lengths(bundle, slice(0, 3)).tolist() == [8 + 2 * LINKER_RESIDUES, 6, 3]
    assert folded_lengths(bundle, slice(1, 2)).tolist() == [6]


def test_no_torch_is_needed() -> None:
    modules = ", ".join(f"esm_pipeline.tasks.{name}.work" for name in ("embed", "fold", "score"))
    code = f"import sys, {modules}, esm_pipeline.tasks.classify.work; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
