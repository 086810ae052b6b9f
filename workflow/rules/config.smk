# Checks the config files before Snakemake reads them: it would report no line for a file that is
# not YAML, and silently take the last of two equal keys.
import json
import os
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError


def require_yaml(path):
    """Raise WorkflowError, with the line, if a config file is not YAML or repeats a key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise WorkflowError(f"{path}: cannot be read ({error.strerror}); give a file") from None
    except UnicodeDecodeError:
        raise WorkflowError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        if not is_json(text):
            line, why = error.problem_mark.line + 1, error.problem
            raise WorkflowError(f"{path}:{line}: not YAML, {why}; correct the line") from None
    except yaml.YAMLError as error:
        raise WorkflowError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    else:
        if not isinstance(root, yaml.MappingNode):
            raise WorkflowError(f"{path}: no settings in it; write keys such as 'fasta: my.fasta'")
        require_unique_keys(root, path)


def is_json(text):
    """Whether `text` is JSON, which may have tabs where YAML may not."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def mappings(root):
    """Every mapping under `root`, each once: an alias may refer to a mapping around it."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) not in seen and not isinstance(node, yaml.ScalarNode):
            seen.add(id(node))
            is_mapping = isinstance(node, yaml.MappingNode)
            nodes += [value for _, value in node.value] if is_mapping else node.value
            if is_mapping:
                yield node


def require_unique_keys(root, path):
    """Raise WorkflowError for a key that appears twice in a mapping."""
    for mapping in mappings(root):
        keys = {}
        for key, _ in mapping.value:
            first = keys.setdefault(str(key.value), key)
            if first is not key:
                raise WorkflowError(
                    f"{path}:{key.start_mark.line + 1}: key '{key.value}' already appears in line "
                    f"{first.start_mark.line + 1}; remove one"
                )


# A module gets its configuration from the workflow that imports it, so no file is read.
if not workflow.modifier.skip_configfile:
    for path in {*map(str, workflow.overwrite_configfiles), "config/config.yaml"}:
        if os.path.exists(path):
            require_yaml(path)
