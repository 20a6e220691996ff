from hypothesis import given
from hypothesis import strategies as st

from baton.block_hash import HASH_BYTES, block_hashes, namespace, next_hash

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=80)


@given(tokens, st.integers(1, 17))
def test_hashes_chain_over_full_blocks_only(token_ids: list[int], block_size: int) -> None:
    seed = namespace("model")
    hashes = block_hashes(seed, token_ids, block_size)
    assert len(hashes) == len(token_ids) // block_size
    parent = seed
    for index, digest in enumerate(hashes):
        parent = next_hash(parent, token_ids[index * block_size : (index + 1) * block_size])
        assert digest == parent
        assert len(digest) == HASH_BYTES


@given(tokens.filter(lambda t: len(t) >= 8), st.integers(0, 7))
def test_a_changed_token_changes_its_block_and_all_after(token_ids: list[int], where: int) -> None:
    changed = list(token_ids)
    changed[where] ^= 1
    before, after = (block_hashes(namespace("m"), t, 4) for t in (token_ids, changed))
    first = where // 4
    assert before[:first] == after[:first]
    assert all(a != b for a, b in zip(before[first:], after[first:], strict=True))


def test_namespaces_differ_in_every_part_and_cannot_be_shifted_into_each_other() -> None:
    parts = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("", "ab", "c"), ("a", "b", "")]
    assert len({namespace(*part) for part in parts}) == len(parts)
