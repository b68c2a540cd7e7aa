"""Settings of the whole suite; its presence also puts `tests/` on the import path (`insecure`)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("privfr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("privfr")
