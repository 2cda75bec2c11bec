"""The inspection on an NVIDIA GPU: driver, memory, kernels and graphs, around any network there.

It knows no runtime: `device.DeviceNetwork` says what one must do, and `engine/backends` has those
that do it.
"""
