"""Importing one makes parts of `lclm_jax` importable without all of it, and so much sooner."""

import sys
import types

from tests.support.paths import ROOT

package = types.ModuleType("lclm_jax")
package.__path__ = [str(ROOT / "lclm_jax")]
sys.modules.setdefault("lclm_jax", package)
