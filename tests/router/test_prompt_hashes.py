"""A prompt's block hashes are what the workers announce, whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.block_hash import block_hashes, namespace
from baton.router.compiled import is_native_built, native
from baton.router.prompt_hashes import Hashing, PromptHashes

pytestmark = pytest.mark.skipif(not is_native_built(), reason="the router's native code is not built here")

HashBlocks = Callable[[bytes, Sequence[int], int], bytes]
FORMS = ["hash_blocks", "hash_blocks_portably"]
prompts = st.lists(st.integers(0, 2**32 - 1), max_size=200)


@pytest.fixture(params=FORMS)
def hash_blocks(request: pytest.FixtureRequest) -> HashBlocks:
    form: HashBlocks = getattr(native, request.param)
    return form


@pytest.mark.parametrize("form", FORMS)
@given(
    token_ids=prompts | prompts.map(tuple),
    block_size=st.integers(1, 64),
    seed=st.binary(min_size=16, max_size=16),
)
def test_native_hashes_are_those_of_the_workers(
    form: str, token_ids: Sequence[int], block_size: int, seed: bytes
) -> None:
    expected = b"".join(block_hashes(seed, token_ids, block_size))
    assert getattr(native, form)(seed, token_ids, block_size) == expected


def test_blocks_of_any_size_are_padded_as_the_standard_says(hash_blocks: HashBlocks) -> None:
    token_ids = range(3000)
    for block_size in [*range(1, 40), 128, 1000, 3000, 3001]:
        expected = b"".join(block_hashes(bytes(16), token_ids, block_size))
        assert hash_blocks(bytes(16), token_ids, block_size) == expected


@pytest.mark.parametrize("token_id", [-1, 2**32, 2**64])
def test_a_token_id_that_has_no_32_bits_is_refused_as_workers_refuse_it(
    hash_blocks: HashBlocks, token_id: int
) -> None:
    for hashed in (hash_blocks, block_hashes):
        with pytest.raises(OverflowError):
            hashed(bytes(16), [1, 2, token_id], 1)


def test_what_cannot_be_hashed_is_refused_by_name(hash_blocks: HashBlocks) -> None:
    with pytest.raises(ValueError, match="seed has 15 bytes, not 16"):
        hash_blocks(bytes(15), [1], 1)
    with pytest.raises(ValueError, match="block_size is 0"):
        hash_blocks(bytes(16), [1], 0)
    with pytest.raises(TypeError, match="integer"):
        hash_blocks(bytes(16), ["1"], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="no sequence"):
        hash_blocks(bytes(16), 7, 1)  # type: ignore[arg-type]


def test_a_prompt_is_hashed_in_the_namespace_of_its_workers_and_tenant() -> None:
    token_ids = tuple(range(100))
    packed = PromptHashes(token_ids, "tenant").of(Hashing(16, "model bfloat16", "v2"))
    assert packed == b"".join(block_hashes(namespace("model bfloat16", "v2", "tenant"), token_ids, 16))
