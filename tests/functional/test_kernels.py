"""Which device outside kernels run on; what they compute, a GPU shows: tests/test_on_gpu.py."""

import jax

from attention_zoo.functional.kernels import modern_gpu


def test_the_default_device_decides_whether_there_is_a_modern_gpu(monkeypatch):
    class Device:
        def __init__(self, capability):
            self.compute_capability = capability

    cpu = jax.devices()[0]
    assert not modern_gpu()
    for capability, modern in (("9.0", True), ("8.0", True), ("7.5", False), ("gfx942", False)):
        monkeypatch.setattr(jax, "devices", lambda kind=None, capability=capability: [Device(capability)])
        assert modern_gpu() == modern
        with jax.default_device(cpu):
            assert not modern_gpu()
