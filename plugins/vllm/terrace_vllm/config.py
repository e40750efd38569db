# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Settings: what `kv_connector_extra_config` may hold. Wrong values are warned about, never raised."""

import dataclasses
import difflib
from typing import Any, List, Mapping, Optional, Tuple


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field per key of `kv_connector_extra_config`; docs/vllm.md explains each."""

    enabled: bool = True
    socket: Optional[str] = None  # None: $TERRACE_SOCKET, else /run/terrace/engine.sock
    tenant: Optional[str] = None  # None: "default"
    token_file: Optional[str] = None  # first line is the tenant's token
    library: Optional[str] = None  # path of libterrace.so; None: searched for
    lookup_timeout_ms: int = 20  # longest wait of a scheduler step for one lookup
    connect_timeout_ms: int = 500  # longest wait for the daemon at engine start; it may also come later
    load_timeout_ms: int = 0  # longest wait for blocks on their way from a lower tier; 0: 30 s
    recompute_us_per_token: int = 0  # what prefill costs; 0: not said. Slower loads are then misses
    min_tokens: int = 1  # shorter hits are not loaded
    copy_threads: int = 0  # 0: libterrace decides
    staging_bytes: int = 0  # 0: the daemon's default
    gpu_export: bool = True  # terraced may open the KV cache in GPU memory; false: this process copies
    model_fingerprint: Optional[str] = None  # replaces the digest over config and weight files
    load_failure_policy: str = "recompute"  # "engine": leave kv_load_failure_policy as it is

    @staticmethod
    def from_extra_config(extra: Any) -> Tuple["Settings", List[str]]:
        """Returns the settings and one warning for each key or value that was not understood."""
        warnings: List[str] = []
        if extra is None:
            extra = {}
        if not isinstance(extra, Mapping):
            return Settings(), [
                f"kv_connector_extra_config must be a map, not {type(extra).__name__}; ignored"
            ]
        fields = {field.name: field for field in dataclasses.fields(Settings)}
        values = {}
        for key, value in extra.items():
            field = fields.get(key) if isinstance(key, str) else None
            if field is None:
                near = difflib.get_close_matches(str(key), fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}"
                warnings.append(f"unknown key {key!r} in kv_connector_extra_config{hint}")
                continue
            try:
                values[key] = _convert(field.default, key, value)
            except (TypeError, ValueError) as error:
                warnings.append(f"kv_connector_extra_config: {error}; "
                                f"{key} stays {field.default!r}")
        return Settings(**values), warnings

    def token(self) -> Optional[str]:
        """The first line of token_file. Raises OSError: the caller names the file in its log line."""
        if not self.token_file:
            return None
        with open(self.token_file, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")


_CHOICES = {"load_failure_policy": ("recompute", "engine")}
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _convert(default: Any, key: str, value: Any) -> Any:
    """The value in its field's type; text forms come from dotted command line arguments."""
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(f"{key} must be one of {', '.join(_CHOICES[key])}, not {value!r}")
        return value
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        word = _WORDS.get(str(value).lower())
        if word is None:
            raise ValueError(f"{key} must be true or false, not {value!r}")
        return word
    if isinstance(default, int):
        if isinstance(value, (bool, float)):
            raise TypeError(f"{key} must be a whole number, not {value!r}")
        number = int(value)
        if not 0 <= number < 2**32:
            raise ValueError(f"{key} must be between 0 and 4294967295, not {value!r}")
        return number
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{key} must be a text, not {value!r}")
    return value
