from baton.router.prefix_index import PrefixIndex

HASHES = [bytes([i]) * 16 for i in range(10)]


def test_only_leading_blocks_count() -> None:
    index = PrefixIndex()
    index.add("w", HASHES[:4], capacity_blocks=100)
    assert index.match("w", HASHES) == 4
    assert index.match("w", HASHES[1:]) == 3
    assert index.match("w", [b"x" * 16, *HASHES]) == 0
    assert index.match("other", HASHES) == 0


def test_a_worker_is_never_credited_with_more_blocks_than_it_has() -> None:
    index = PrefixIndex()
    index.add("w", HASHES[:6], capacity_blocks=4)
    assert index.match("w", HASHES) == 4, "the first blocks of a prompt outlive its last ones"


def test_a_worker_that_left_is_credited_with_nothing() -> None:
    index = PrefixIndex()
    index.add("w", HASHES, capacity_blocks=100)
    index.forget("w")
    assert index.match("w", HASHES) == 0
