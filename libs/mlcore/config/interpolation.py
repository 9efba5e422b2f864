"""`${env:NAME}` and `${env:NAME,default}` in text values; `${oc.env:...}` means the same."""

import re
from collections.abc import Mapping
from typing import Any

from mlcore.config.errors import ConfigError
from mlcore.config.names import Text

_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")


def interpolate(value: Any, environ: Mapping[str, str], *, where: str) -> Any:
    """Fill in environment variables in `value`, which may be a list or mapping of values.

    Args:
        value: A plain value.
        environ: The environment.
        where: Place and key of the value, for messages.

    Returns:
        The value; text that had a placeholder comes back as `Text`, so that `${env:EPOCHS}` can fill a number.

    Raises:
        ConfigError: A variable without a default is not set, or `${...}` holds something else.
    """
    if isinstance(value, list):
        return [interpolate(item, environ, where=where) for item in value]
    if isinstance(value, dict):
        return {key: interpolate(item, environ, where=where) for key, item in value.items()}
    if not isinstance(value, str) or "${" not in value:
        return value
    return Text(_PLACEHOLDER.sub(lambda match: _look_up(match.group(1), environ, where), value))


def _look_up(content: str, environ: Mapping[str, str], where: str) -> str:
    resolver, _, rest = content.partition(":")
    if resolver.strip() not in ("env", "oc.env") or not rest:
        raise ConfigError(f"{where}: '${{{content}}}' is not understood; write ${{env:NAME}} or ${{env:NAME,default}}")
    name, comma, default = rest.partition(",")
    name = name.strip()
    if name in environ:
        return environ[name]
    if comma:
        return default.strip()
    raise ConfigError(
        f"{where}: environment variable {name} is not set; set it (`export {name}=...` or a line in .env) "
        f"or write ${{env:{name},default}}"
    )
