"""Which kernels let a mount outlive its server."""

from __future__ import annotations

import pytest

from aiofs import kernel, survival


def test_kernel_releases_are_read() -> None:
    """Distributions add to them what they like."""
    assert kernel.version("6.1.0-13-amd64") == (6, 1, 0)
    assert kernel.version("6.12.96+deb13-amd64") == (6, 12, 96)
    assert kernel.version("5.15-custom") == (5, 15, 0)
    assert kernel.version("unreadable") == (0, 0, 0)


@pytest.mark.parametrize(
    "release", ["6.12.96", "6.12.101-amd64", "6.18.39", "6.18.44-custom", "7.1.4", "7.2.0-rc1", "8.0"]
)
def test_mended_kernels_can(release: str) -> None:
    """From the repair on, in each series."""
    assert survival.why_not(release) == ""


@pytest.mark.parametrize(
    ("release", "mended"),
    [
        ("6.9.0", "6.12.96"),
        ("6.12.95", "6.12.96"),
        ("6.13.1", "6.18.39"),
        ("6.18.38", "6.18.39"),
        ("6.19.0", "7.1.4"),
        ("7.1.3", "7.1.4"),
    ],
)
def test_broken_kernels_say_which_ones_are_not(release: str, mended: str) -> None:
    """They have the feature, and a fault in it."""
    assert f"{mended} and later" in survival.why_not(release)
    assert "CVE-2026-64265" in survival.why_not(release)


@pytest.mark.parametrize("release", ["6.1.0-13-amd64", "6.8.12", "5.10.0", "unreadable"])
def test_older_kernels_cannot(release: str) -> None:
    """Linux 6.9 brought it."""
    assert "6.9" in survival.why_not(release)
    assert release in survival.why_not(release)
