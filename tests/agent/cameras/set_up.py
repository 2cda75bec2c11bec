"""What every camera does that is set up for another product while it runs."""


def follows_products(camera, cola, lemon, why):
    """Frames of `cola` and `lemon` are so wide; `beer` is refused with `why`, and spoils frames."""
    for product, width in (("cola", cola), ("lemon", lemon), ("cola", cola)):
        answer = camera.adjust(product)
        while (frame := camera.read()).product != product:
            pass
        assert (frame.pixels.shape[1], answer.result(0)) == (width, None)
    refused = camera.adjust("beer")
    while camera.read().product:
        pass
    assert why in refused.result(0)
