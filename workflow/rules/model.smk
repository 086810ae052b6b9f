# Each model, before any job that runs it: fetched into the Hugging Face cache if it is not there.
# Jobs read it from there without network, at the commit found here. The rule runs again when the
# files of a local model change.
from esm_pipeline.settings import file_state

for name, model in MODELS.items():

    rule:
        name:
            "_".join(Path(name).with_suffix("").parts)
        input:
            model.files(),
        output:
            f"{OUT}/{name}",
        log:
            f"{OUT}/logs/{Path(name).with_suffix('.log')}",
        benchmark:
            f"{OUT}/benchmarks/{Path(name).with_suffix('.tsv')}"
        localrule: True
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            model=shlex.join(model.flags()),
            files=[list(file_state(file)) for file in model.files()],
        message:
            "model: {params.model}, found once for all jobs"
        shell:
            "{params.esm} download {params.model} --out={output:q} 2>&1 | tee -- {log:q}"


# Before the jobs of a task: whether its models can do what its settings demand. One rule for each
# task, so that a change to one task does not rerun the others.
for task in settings.tasks:

    rule:
        name:
            f"check_{task}"
        input:
            models_of(task),
        output:
            touch(f"{OUT}/logs/checked/{task}"),
        log:
            f"{OUT}/logs/check_{task}.log",
        benchmark:
            f"{OUT}/benchmarks/check_{task}.tsv"
        localrule: True
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            task=task,
            flags=flags(getattr(settings, task).computing()),
        message:
            "check_{params.task}: whether {params.task} can run with {input} and these settings"
        shell:
            "for model in {input:q}; do"
            ' {params.esm} download --model="$model" {params.task} {params.flags} || exit 1;'
            " done 2>&1 | tee -- {log:q}"
