from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from s3dlio.engine.errors import UnsupportedError
from s3dlio.tensors import flatten
from tests.tensors.shards import again, filled_numpy, filled_torch, image_of, raw, same, save

NUMPY_DTYPES: list[Any] = [
    *"? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 g G".split(),
    *">i2 >u4 >f4 >f8 >c16 >U3 >M8[s]".split(),
    *"M8 M8[ns] M8[25s] m8[us] m8 U3 S5 V7".split(),
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3b11fnuz,
    ml_dtypes.float8_e8m0fnu,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.int4,
    np.dtype([("a", "i4"), ("b", ">f8", (2, 3)), ("c", [("x", "u1"), ("y", "S3")])]),
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [4, 0], "itemsize": 12}),
    np.dtype([(("title", "a"), "i4"), ("b", ml_dtypes.bfloat16)]),
]
TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
]  # fmt: skip
SHAPES: list[tuple[int, ...]] = [(), (1,), (0,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
def test_numpy_dtypes_come_back_to_the_bit(dtype: Any) -> None:
    arrays = [filled_numpy(dtype, shape, seed) for seed, shape in enumerate(SHAPES)]
    back = again(arrays)
    same(arrays, back)
    assert [array.dtype for array in back] == [array.dtype for array in arrays]
    assert all(array.flags.writeable for array in back)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
def test_numpy_strided_arrays_are_gathered(dtype: Any) -> None:
    base = filled_numpy(dtype, (4, 6, 5))
    arrays = [base[:, ::2], base[..., ::-1], base.T, base[::2, 1:4, 2], base[1, :, ::3], np.asfortranarray(base)]
    assert all(leaf.address() is None for leaf in flatten(arrays).leaves)
    for array, back in zip(arrays, again(arrays), strict=True):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert raw(back) == raw(array.view(f"V{array.itemsize}"))  # as raw elements, with the padding of structures


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_dtypes_come_back_to_the_bit(dtype: torch.dtype) -> None:
    tensors = [filled_torch(dtype, shape, seed) for seed, shape in enumerate(SHAPES)]
    same(tensors, again(tensors))


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_strided_tensors_are_gathered(dtype: torch.dtype) -> None:
    base = filled_torch(dtype, (4, 6, 5))
    tensors = [base[:, ::2], base.permute(2, 0, 1), base[::2, 1:4, 2], base[1, :, ::3], base[:1].expand(3, 6, 5)]
    assert all(leaf.address() is None for leaf in flatten(tensors).leaves)
    dense = filled_torch(dtype, (4, 6, 5)).view(torch.uint8).reshape(4, 6, 5, dtype.itemsize)
    wanted = [dense[:, ::2], dense.permute(2, 0, 1, 3), dense[::2, 1:4, 2], dense[1, :, ::3]]
    back = again(tensors)
    assert [raw(tensor) for tensor in back] == [*map(raw, wanted), raw(dense[:1]) * 3]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_lazily_conjugated_and_negated_tensors_are_resolved() -> None:
    for dtype in (torch.complex32, torch.complex64, torch.complex128):
        values = torch.tensor([1 + 2j, -0.0 + 3j, 4 - 5j], dtype=torch.complex64).to(dtype)
        lazy = values.conj()
        assert lazy.is_conj()
        assert again(lazy).tolist() == [value.conjugate() for value in values.tolist()]
        assert lazy.imag.is_neg()
        assert again(lazy.imag).tolist() == [-value.imag for value in values.tolist()]


def test_symbolic_zeros_become_real() -> None:
    assert again(torch._efficientzerotensor((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_only_the_bytes_of_a_view_are_stored() -> None:
    base, array = torch.arange(1_000_000, dtype=torch.int64), np.arange(1_000_000)
    saved = save([base[10:13], array[20:22]])
    assert [leaf.nbytes for leaf in saved.leaves] == [24, 16]
    assert saved.layout.total - saved.layout.header_size == 40
    assert [image_of(leaf) for leaf in saved.leaves] == [raw(base[10:13]), raw(array[20:22])]


def test_parameters_and_gradients_come_back_as_they_were() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    state = [parameter, frozen, torch.zeros(3, requires_grad=True), torch.zeros(3)]
    back = again(state)
    same(state, back)
    assert [type(item) for item in back] == [torch.nn.Parameter, torch.nn.Parameter, torch.Tensor, torch.Tensor]
    assert all(item.is_leaf for item in back)


def test_memory_maps_are_arrays(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "a", np.int32, "w+", shape=(3,))
    mapped[:] = 1, 2, 3
    back = again(mapped)
    assert type(back) is np.ndarray
    assert back.tolist() == [1, 2, 3]
    del mapped


def test_read_only_arrays_come_back_writable() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    back = again(array)
    back += 1
    assert back.tolist() == [1, 2, 3]


def coo(**options: Any) -> torch.Tensor:
    indices, values = torch.tensor([[0, 1, 1], [2, 0, 2]]), torch.tensor([3.0, 4.0, 5.0])
    return torch.sparse_coo_tensor(indices, values, (2, 3), check_invariants=True, **options)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
def test_sparse_tensors_come_back() -> None:
    dense = torch.arange(16.0).reshape(4, 4) * (torch.arange(16).reshape(4, 4) % 3 == 0)
    with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
        state = {
            "coo": coo(),
            "coalesced": coo().coalesce(),
            "grad": coo(requires_grad=True),
            "parameter": torch.nn.Parameter(coo(), requires_grad=False),
            "csr": dense.to_sparse_csr(),
            "csc": dense.to_sparse_csc(),
            "bsr": dense.to_sparse_bsr((2, 2)),
            "bsc": dense.to_sparse_bsc((2, 2)),
        }
        saved = save(state)
        back = again(state)
    same(state, back)
    assert saved.table.names[:2] == ["coo.indices", "coo.values"]


def test_memory_that_moved_before_it_was_copied_is_refused() -> None:
    tensor = torch.zeros(100)
    leaf = flatten({"w": tensor}).leaves[0]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedError, match="w: its memory was moved or freed"):
        image_of(leaf)


def test_leaves_keep_their_memory_alive() -> None:
    leaves = flatten([torch.arange(50_000), np.arange(50_000), bytearray(b"x" * 50_000), "é" * 100_000]).leaves
    torch.zeros(50_000)  # would take the place of a freed tensor
    np.zeros(50_000)
    assert image_of(leaves[0]) == image_of(leaves[1]) == np.arange(50_000).tobytes()
    assert image_of(leaves[2]) == b"x" * 50_000
    assert image_of(leaves[3]) == ("é" * 100_000).encode()


def test_ranges_outside_of_a_leaf_are_refused() -> None:
    for leaf in flatten([np.zeros(3), torch.zeros(3)]).leaves:
        for start, stop in ((-1, 2), (0, leaf.nbytes + 1), (3, 2)):
            with pytest.raises(ValueError, match="bytes"):
                leaf.copy_to(0, start, stop)
