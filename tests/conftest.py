"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "sessionferry",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sessionferry")
