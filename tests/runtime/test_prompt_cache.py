"""The cache of prompts: bounded, least recently used first, and never a view of something larger."""

import numpy as np
from latentc.prompt_cache import PromptCache, key_of


def value(number: int) -> dict[str, np.ndarray]:
    return {"a": np.full(6, number, np.float32), "b": np.full(1, number, np.int64)}  # 32 bytes


def test_many_prompts_leave_no_more_than_the_bound() -> None:
    cache = PromptCache(max_bytes=100)
    for number in range(50):
        cache.put(bytes([number]), value(number))
        assert cache.num_bytes <= 100
    assert cache.num_bytes == 3 * 32
    kept = [number for number in range(50) if cache.get(bytes([number])) is not None]
    assert kept == [47, 48, 49]
    for number in kept:
        np.testing.assert_array_equal(cache.get(bytes([number]))["a"], value(number)["a"])


def test_what_was_asked_for_last_stays() -> None:
    cache = PromptCache(max_bytes=64)
    cache.put(b"unconditional", value(0))
    for number in range(10):
        cache.put(bytes([number]), value(number))
        assert cache.get(b"unconditional") is not None
    assert cache.hits == 10
    assert cache.get(b"\0") is None
    assert cache.hits == 10


def test_what_is_put_twice_counts_once() -> None:
    cache = PromptCache(max_bytes=64)
    for number in (1, 2, 3):
        cache.put(b"k", value(number))
    assert cache.num_bytes == 32
    assert cache.get(b"k")["b"].tolist() == [3]


def test_what_is_too_large_is_not_kept_and_evicts_nothing() -> None:
    cache = PromptCache(max_bytes=64)
    cache.put(b"k", value(1))
    cache.put(b"large", {"a": np.zeros(65, np.uint8)})
    assert cache.get(b"large") is None
    assert cache.get(b"k") is not None


def test_a_row_does_not_keep_its_batch() -> None:
    cache, batch = PromptCache(), np.arange(1000.0)
    cache.put(b"k", {"row": batch[3:4]})
    kept = cache.get(b"k")["row"]
    assert kept.base is None
    batch[3] = -1
    assert kept.tolist() == [3]


def test_a_key_says_all_that_a_result_depends_on() -> None:
    zeros = np.zeros((2, 3), np.int64)
    keys = [
        key_of("g", {"x": zeros}),
        key_of("h", {"x": zeros}),
        key_of("g", {"y": zeros}),
        key_of("g", {"x": zeros.reshape(3, 2)}),
        key_of("g", {"x": zeros.view(np.float64)}),
        key_of("g", {"x": zeros + 1}),
        key_of("g", {"x": zeros, "y": zeros}),
        key_of("g", {"x": zeros, "y": zeros + 1}),
        key_of("g", {"x": zeros + 1, "y": zeros}),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert key_of("g", {"y": zeros, "x": zeros + 1}) == keys[-1]
