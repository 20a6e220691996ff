"""What a worker measures of itself before it registers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from baton.engine.engine import Engine
from baton.worker.profile import measure_profile


@pytest.mark.parametrize("kv_blocks", [2, 5, 64])
def test_a_profile_is_sound_and_leaves_the_pool_as_it_was(
    engine_of: Callable[[str, int], Engine], kv_blocks: int
) -> None:
    engine = engine_of("profiled", kv_blocks)
    profile = measure_profile(engine)
    usage = engine.blocks.usage()
    assert (usage.free, usage.total) == (kv_blocks, kv_blocks)
    assert min(profile.prefill_tokens_per_s, profile.decode_step_s, profile.copy_bytes_per_s) > 0
    slopes = (profile.prefill_s_per_pair, profile.decode_s_per_sequence, profile.decode_s_per_context_token)
    assert min(slopes) >= 0
    assert profile.step_s(8, 800) >= profile.step_s(1, 100) > 0
    assert profile.prefill_s(200, 100) > profile.prefill_s(100, 0) > 0
