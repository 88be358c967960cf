"""Triton's `triton_python_backend_utils` for an interpreter that has no NumPy 1 (Python 3.13).

Triton 2.51's stub is built with a pybind11 that reads an array's item size where NumPy 1 has it;
2.12 is the first that knows NumPy 2 (https://github.com/pybind/pybind11/pull/5050). Under NumPy 2
the stub reads zero there, without an error: it makes inputs with strides of zero, so that their
first element repeats, and takes outputs for empty. Here NumPy chooses the strides of what the stub
makes, and outputs are handed over by DLPack, which carries sizes of its own.

Takes the original's place in the backend's folder; the original lies beside it.
"""

# The original exists in Triton's stub only.
# mypy: ignore-errors

import ctypes
import sys
import types
import warnings

import numpy as np
from triton_python_backend_utils_original import *  # noqa: F403

# Of NumPy's C API table: as many entries as there are at least, more than the stub asks for; and
# the index of PyArray_NewFromDescr, the same since 1.0 (numpy/_core/code_generators/numpy_api.py).
_TABLE_LENGTH = 300
_NEW_FROM_DESCR = 94

_python = ctypes.pythonapi
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_SetDestructor.argtypes = (ctypes.py_object, ctypes.c_void_p)

_NewFromDescr = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,  # the new array
    ctypes.c_void_p,  # subtype
    ctypes.c_void_p,  # descr
    ctypes.c_int,  # nd
    ctypes.c_void_p,  # dims
    ctypes.c_void_p,  # strides
    ctypes.c_void_p,  # data
    ctypes.c_int,  # flags
    ctypes.c_void_p,  # obj
)


def _table_without_strides():
    """A copy of NumPy's C API table whose PyArray_NewFromDescr passes over the strides it is
    given; the stub only ever makes contiguous arrays. With what has to stay alive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old name of the module, which the stub looks for
        import numpy.core.multiarray as multiarray
    address = _python.PyCapsule_GetPointer(multiarray._ARRAY_API, None)
    table = (ctypes.c_void_p * _TABLE_LENGTH)()
    ctypes.memmove(table, address, ctypes.sizeof(table))
    original = _NewFromDescr(table[_NEW_FROM_DESCR])

    def new_from_descr(subtype, descr, nd, dims, strides, data, flags, base):
        return original(subtype, descr, nd, dims, None, data, flags, base)

    replaced = _NewFromDescr(new_from_descr)
    table[_NEW_FROM_DESCR] = ctypes.cast(replaced, ctypes.c_void_p).value
    multiarray._ARRAY_API = _python.PyCapsule_New(table, None, None)
    return table, replaced


_keep_alive = _table_without_strides()


def _maker(tensor_class):
    """What stands for the stub's class Tensor: a function that makes one."""

    def tensor(name, array):
        if array.dtype.hasobject:
            raise TypeError(f"{name}: outputs of text are not supported with NumPy 2")
        # DLPack refuses arrays that are read-only.
        capsule = np.require(array, requirements=["C", "W"]).__dlpack__()
        # Triton frees what the capsule holds, and renames it in a way that NumPy does not know;
        # its destructor would complain of each.
        _python.PyCapsule_SetDestructor(capsule, None)
        return tensor_class.from_dlpack(name, capsule)

    return tensor


class _Module(types.ModuleType):
    """The stub adds its classes to the module after importing it."""

    def __setattr__(self, name, value):
        super().__setattr__(name, _maker(value) if name == "Tensor" else value)


sys.modules[__name__].__class__ = _Module
