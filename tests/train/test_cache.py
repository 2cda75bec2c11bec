from train.cache import ByteLimitedCache


def test_values_stay_within_their_limit():
    made = []

    def value(key):
        return cache.get(key, lambda: made.append(key) or bytes(10), len)

    cache = ByteLimitedCache(limit=25)
    for key in ("a", "b", "c", "a", "b", "c"):
        assert value(key) == bytes(10)
    assert made == ["a", "b", "c", "c"]
    cache.forget_others({"b", "c"})
    for key in ("b", "c", "a", "c"):
        value(key)
    assert made[4:] == ["c", "a"]
