"""Identity of an evaluated model, so that a directory has the answers of one model only."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from lclm_jax.config.values import to_dict
from lclm_jax.errors import FileError
from lclm_jax.files import read_json, write_whole
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.store.identity import hash_array

MODEL = "evaluated_model.json"


def check_model(directory: Path, model: LanguageModel):
    """Note the model whose answers a directory has; raises FileError for those of another one."""
    file, identity = directory / MODEL, find_identity(model)
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"identity": identity, "name": model.name}))
        return
    known = read_json(file)
    if known.get("identity") != identity:
        raise FileError(
            f"{directory} has answers of {known.get('name') or 'another model'}, whose parameters "
            f"or config differ from those of {model.name or 'this one'}; choose another directory"
        )


def find_identity(model: LanguageModel) -> str:
    """Return a hash of the parameters, the config and the tokenizer of a model."""
    hashes = [
        (jax.tree_util.keystr(path), x.shape, np.asarray(hash_array(x)).tolist())
        for path, x in jax.tree_util.tree_leaves_with_path(model.weights)
    ]
    described = json.dumps([hashes, to_dict(model.config), model.tokenizer.fingerprint])
    return hashlib.sha256(described.encode()).hexdigest()[:16]
