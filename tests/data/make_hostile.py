#!/usr/bin/env python3
"""Writes the small files of tests/data/hostile and tests/data/valid, and what must become of each.

    make_hostile.py [folder]      the folder that gets hostile/ and valid/; by default the one of this script

hostile/expected.tsv: file, status of st_open, a fragment that the message must contain.
valid/expected.tsv:   file, number of tensors.

Each file breaks one rule, in one way. Nothing here is random: the same script writes the same bytes.
"""

import json
import pathlib
import struct
import sys

MAX_HEADER_LEN = 100_000_000
DTYPES = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}


def with_length(length, header, data=b""):
    return struct.pack("<Q", length) + header + data


def file(header, data=b""):
    if isinstance(header, str):
        header = header.encode()
    return with_length(len(header), header, data)


def tensor(dtype='"U8"', shape="[4]", offsets="[0,4]"):
    return '{"dtype":%s,"shape":%s,"data_offsets":%s}' % (dtype, shape, offsets)


def one(description, nbytes=4):
    """A file with the one tensor `layer.weight`."""
    return file('{"layer.weight":%s}' % description, bytes(range(nbytes)))


def two(first, second, nbytes):
    return file('{"first":%s,"second":%s}' % (first, second), bytes(range(nbytes)))


def metadata(value):
    return file('{"__metadata__":%s}' % value)


def unknown_field(value):
    return one('{"dtype":"U8","shape":[4],"data_offsets":[0,4],"note":%s}' % value)


EMPTY = tensor(shape="[0]", offsets="[0,0]")
GOOD = tensor()

# Name, content, status, a fragment of the message.
HOSTILE = [
    # The first 8 bytes.
    ("empty_file", b"", "ST_ERR_HEADER_TOO_SMALL", "0 bytes"),
    ("one_byte", b"{", "ST_ERR_HEADER_TOO_SMALL", "1 bytes"),
    ("seven_bytes", b"\x02\0\0\0\0\0\0", "ST_ERR_HEADER_TOO_SMALL", "7 bytes"),
    ("length_max", with_length(2**64 - 1, b"{}"), "ST_ERR_HEADER_TOO_LARGE", "18446744073709551615"),
    ("length_sign_bit", with_length(2**63, b"{}"), "ST_ERR_HEADER_TOO_LARGE", "9223372036854775808"),
    ("length_over_limit", with_length(MAX_HEADER_LEN + 1, b"{}"), "ST_ERR_HEADER_TOO_LARGE", "100000001"),
    ("length_big_endian", struct.pack(">Q", 2) + b"{}", "ST_ERR_HEADER_TOO_LARGE", "144115188075855872"),
    ("length_at_limit", with_length(MAX_HEADER_LEN, b"{}"), "ST_ERR_HEADER_LENGTH", "100000000"),
    ("length_one_beyond", with_length(3, b"{}"), "ST_ERR_HEADER_LENGTH", "10 in all"),
    ("length_only", with_length(1, b""), "ST_ERR_HEADER_LENGTH", "8 in all"),
    ("length_zero", with_length(0, b""), "ST_ERR_HEADER_JSON", "zeros (a header of 0 bytes)"),
    ("length_zero_with_data", with_length(0, b"{}"), "ST_ERR_HEADER_JSON", "begins with a header of 0 bytes"),
    # What is no safetensors file at all.
    ("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4\n" % (b"0" * 64),
     "ST_ERR_HEADER_TOO_LARGE", "git lfs pull"),
    ("html", b"<!DOCTYPE html><html><head><title>404</title>", "ST_ERR_HEADER_TOO_LARGE", "HTML"),
    ("html_without_doctype", b"<html lang=\"en\">", "ST_ERR_HEADER_TOO_LARGE", "HTML"),
    ("xml", b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "ST_ERR_HEADER_TOO_LARGE", "XML"),
    ("message", b"Entry not found", "ST_ERR_HEADER_TOO_LARGE", "\"Entry not found\""),
    ("message_with_escapes", b"Access denied\x1b[31m for \xe2\x80\xaeyou\n", "ST_ERR_HEADER_TOO_LARGE", "claims"),
    ("json", b'{"weight_map":{"a":"a.safetensors"}}', "ST_ERR_HEADER_TOO_LARGE", "ends with .json"),
    ("gzip", b"\x1f\x8b\x08\x08\x01\x02\x03\x04\x00\x03model", "ST_ERR_HEADER_TOO_LARGE", "gzip"),
    ("gzip_without_time", b"\x1f\x8b\x08" + bytes(30), "ST_ERR_HEADER_LENGTH", "gzip"),
    ("zip", b"PK\x03\x04\x00\x00\x08\x08" + bytes(60), "ST_ERR_HEADER_TOO_LARGE", "PyTorch"),
    ("zip_of_version_0", b"PK\x03\x04" + bytes(60), "ST_ERR_HEADER_LENGTH", "zip"),
    ("gguf", b"GGUF\x03\x00\x00\x00" + bytes(16), "ST_ERR_HEADER_TOO_LARGE", "GGUF"),
    ("pickle", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "ST_ERR_HEADER_TOO_LARGE", "pickle"),
    ("tar", b"model.safetensors".ljust(257, b"\0") + b"ustar\x0000", "ST_ERR_HEADER_TOO_LARGE", "tar"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04\x58\x01\x00\x00", "ST_ERR_HEADER_TOO_LARGE", "zstd"),
    ("xz", b"\xfd7zXZ\x00\x00\x04", "ST_ERR_HEADER_TOO_LARGE", "xz"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(8), "ST_ERR_HEADER_TOO_LARGE", "HDF5"),
    ("numpy", b"\x93NUMPY\x01\x00v\x00{", "ST_ERR_HEADER_TOO_LARGE", "NumPy"),
    ("zeros", bytes(4096), "ST_ERR_HEADER_JSON", "zeros (a header of 0 bytes)"),
    ("pickle_like_length", with_length(640, b"?" * 640), "ST_ERR_HEADER_JSON", "line 1 column 1"),
    # Text.
    ("utf8_first_byte", file(b"\xff{}"), "ST_ERR_HEADER_UTF8", "byte 0"),
    ("utf8_in_name", file(b'{"\xc3\x28":' + GOOD.encode() + b"}", bytes(4)), "ST_ERR_HEADER_UTF8", "byte 2"),
    ("utf8_surrogate", file(b'{"\xed\xa0\x80":' + GOOD.encode() + b"}", bytes(4)), "ST_ERR_HEADER_UTF8", "byte 2"),
    ("utf8_overlong", file(b'{"ab\xc0\xaf":1}'), "ST_ERR_HEADER_UTF8", "byte 4"),
    ("utf8_cut", file(b'{}\xe6\x9d'), "ST_ERR_HEADER_UTF8", "byte 2"),
    ("utf16", file("{}".encode("utf-16")), "ST_ERR_HEADER_UTF8", "byte 0"),
    # JSON.
    ("byte_order_mark", file("\ufeff{}"), "ST_ERR_HEADER_JSON", "line 1 column 1"),
    ("padded_with_nul", file(b"{}\0\0\0\0\0\0"), "ST_ERR_HEADER_JSON", "line 1 column 3"),
    ("cut_in_string", file('{"layer.wei'), "ST_ERR_HEADER_JSON", "column 11"),
    ("cut_in_number", file('{"a":{"dtype":"U8","shape":[1'), "ST_ERR_HEADER_JSON", "column 29"),
    ("cut_before_brace", file('{"a":%s' % EMPTY), "ST_ERR_HEADER_JSON", "EOF"),
    ("two_objects", file("{} {}"), "ST_ERR_HEADER_JSON", "trailing"),
    ("trailing_comma", file('{"a":%s,}' % EMPTY), "ST_ERR_HEADER_JSON", "trailing comma"),
    ("trailing_comma_in_shape", one(tensor(shape="[4,]")), "ST_ERR_HEADER_JSON", "trailing comma"),
    ("missing_comma", file('{"a":%s "b":%s}' % (EMPTY, EMPTY)), "ST_ERR_HEADER_JSON", "expected `,`"),
    ("missing_colon", file('{"a" %s}' % EMPTY), "ST_ERR_HEADER_JSON", "expected `:`"),
    ("comment", file('{/* none */}'), "ST_ERR_HEADER_JSON", "column 2"),
    ("line_comment", file('// none\n{}'), "ST_ERR_HEADER_JSON", "line 1 column 1"),
    ("single_quotes", file("{'a':1}"), "ST_ERR_HEADER_JSON", "column 2"),
    ("name_without_quotes", file('{a:1}'), "ST_ERR_HEADER_JSON", "column 2"),
    ("not_a_number", one(tensor(shape="[NaN]")), "ST_ERR_HEADER_JSON", "column"),
    ("infinity_in_unknown_field", unknown_field("Infinity"), "ST_ERR_HEADER_JSON", "column"),
    ("leading_zero", one(tensor(shape="[04]")), "ST_ERR_HEADER_JSON", "invalid number"),
    ("plus_sign", one(tensor(shape="[+4]")), "ST_ERR_HEADER_JSON", "column"),
    ("hexadecimal", one(tensor(shape="[0x4]")), "ST_ERR_HEADER_JSON", "column"),
    ("number_beyond_f64", unknown_field("1e999"), "ST_ERR_HEADER_JSON", "number out of range"),
    ("raw_newline_in_name", file('{"a\nb":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "control character"),
    ("raw_nul_in_name", file('{"a\0b":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "control character"),
    ("invalid_escape", file('{"a\\x41":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "invalid escape"),
    ("invalid_escape_in_unknown_field", unknown_field('"\\q"'), "ST_ERR_HEADER_JSON", "invalid escape"),
    ("short_escape", file('{"\\u12":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "escape"),
    ("lone_surrogate_in_name", file('{"\\ud800":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "column"),
    ("lone_low_surrogate_in_name", file('{"\\udc00":%s}' % EMPTY), "ST_ERR_HEADER_JSON", "surrogate"),
    ("lone_surrogate_in_unknown_field", unknown_field('"\\ud800 "'), "ST_ERR_HEADER_JSON", "column"),
    ("nested_128", unknown_field("[" * 126 + "]" * 126), "ST_ERR_HEADER_JSON", "recursion limit"),
    ("nested_1000", unknown_field("[" * 1000 + "]" * 1000), "ST_ERR_HEADER_JSON", "recursion limit"),
    ("nested_objects", file('{"a":' * 1000), "ST_ERR_HEADER_JSON", "recursion limit"),
    # JSON, but not a header.
    ("top_level_array", file("[]"), "ST_ERR_HEADER_STRUCTURE", "not an object of tensors"),
    ("top_level_string", file('"{}"'), "ST_ERR_HEADER_STRUCTURE", "not an object of tensors"),
    ("top_level_null", file("null"), "ST_ERR_HEADER_STRUCTURE", "not an object of tensors"),
    ("top_level_number", file("0"), "ST_ERR_HEADER_STRUCTURE", "not an object of tensors"),
    ("tensor_null", one("null"), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_number", one("4"), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_string", one('"U8"'), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_true", one("true"), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_empty_object", one("{}"), "ST_ERR_HEADER_STRUCTURE", '"layer.weight": it has no dtype'),
    ("tensor_empty_array", one("[]"), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_array_of_2", one('["U8",[4]]'), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("tensor_array_of_4", one('["U8",[4],[0,4],0]'), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("second_tensor_null", two(GOOD, "null", 4), "ST_ERR_HEADER_STRUCTURE", '"second"'),
    ("dtype_missing", one('{"shape":[4],"data_offsets":[0,4]}'), "ST_ERR_HEADER_STRUCTURE", "no dtype"),
    ("dtype_twice", one('{"dtype":"U8",' + GOOD[1:]), "ST_ERR_HEADER_STRUCTURE", '"layer.weight": dtype occurs twice'),
    ("dtype_number", one(tensor(dtype="5")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("dtype_null", one(tensor(dtype="null")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("dtype_array", one(tensor(dtype='["U8"]')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("dtype_empty_object", one(tensor(dtype="{}")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("dtype_object_of_two", one(tensor(dtype='{"U8":null,"I8":null}')), "ST_ERR_HEADER_STRUCTURE", "several keys"),
    ("dtype_object_of_number", one(tensor(dtype='{"U8":1}')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_missing", one('{"dtype":"U8","data_offsets":[0,4]}'), "ST_ERR_HEADER_STRUCTURE", "no shape"),
    ("shape_twice", one('{"shape":[4],' + GOOD[1:]), "ST_ERR_HEADER_STRUCTURE", "shape occurs twice"),
    ("shape_negative", one(tensor(shape="[-4]")), "ST_ERR_HEADER_STRUCTURE", "-4"),
    ("shape_negative_zero", one(tensor(shape="[-0]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_float", one(tensor(shape="[4.0]")), "ST_ERR_HEADER_STRUCTURE", "4.0"),
    ("shape_exponent", one(tensor(shape="[4e0]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_string", one(tensor(shape='["4"]')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_null", one(tensor(shape="null")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_number", one(tensor(shape="4")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_of_null", one(tensor(shape="[null]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_nested", one(tensor(shape="[[4]]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_object", one(tensor(shape='{"0":4}')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_beyond_u64", one(tensor(shape="[18446744073709551616]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_wraps_to_4_in_64_bits", one(tensor(shape="[%d]" % (2**64 + 4))), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("shape_wraps_to_4_in_24_digits", one(tensor(shape="[%d]" % (5422 * 2**64 + 4))), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_wrap_to_4", one(tensor(offsets="[0,%d]" % (5422 * 2**64 + 4))), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_missing", one('{"dtype":"U8","shape":[4]}'), "ST_ERR_HEADER_STRUCTURE", "no data_offsets"),
    ("offsets_twice", one('{"data_offsets":[0,4],' + GOOD[1:]), "ST_ERR_HEADER_STRUCTURE", "data_offsets occurs twice"),
    ("offsets_none", one(tensor(offsets="[]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_one", one(tensor(offsets="[4]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_three", one(tensor(offsets="[0,4,4]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_null", one(tensor(offsets="null")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_negative", one(tensor(offsets="[-4,0]")), "ST_ERR_HEADER_STRUCTURE", "-4"),
    ("offsets_float", one(tensor(offsets="[0,4.0]")), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_strings", one(tensor(offsets='["0","4"]')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("offsets_object", one(tensor(offsets='{"0":0,"1":4}')), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("terminal_escape_in_name", file('{"\\u001b[31mred\\u0007":null}'), "ST_ERR_HEADER_STRUCTURE", r'"\u{1b}[31mred\u{7}"'),
    ("newline_in_name", file('{"a\\nb\\r":null}'), "ST_ERR_HEADER_STRUCTURE", r'"a\nb\r"'),
    ("right_to_left_in_name", file('{"a\\u202eb":null}'), "ST_ERR_HEADER_STRUCTURE", r'"a\u{202e}b"'),
    ("quote_in_name", file('{"a\\"b":null}'), "ST_ERR_HEADER_STRUCTURE", r'"a\"b"'),
    ("escape_in_value", one('"\\u001b[31m\\u202e"'), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    ("long_name", file('{"head%stail":null}' % ("x" * 4000)), "ST_ERR_HEADER_STRUCTURE", 'tail"'),
    ("long_wide_name", file('{"%s":null}' % ("\\u001b" * 1000)), "ST_ERR_HEADER_STRUCTURE", "..."),
    ("long_value", one('"%s"' % ("x" * 4000)), "ST_ERR_HEADER_STRUCTURE", '"layer.weight"'),
    # Metadata.
    ("metadata_string", metadata('"pt"'), "ST_ERR_HEADER_METADATA", "__metadata__"),
    ("metadata_array", metadata('["format","pt"]'), "ST_ERR_HEADER_METADATA", "__metadata__"),
    ("metadata_number", metadata("1"), "ST_ERR_HEADER_METADATA", "__metadata__"),
    ("metadata_of_number", metadata('{"step":7}'), "ST_ERR_HEADER_METADATA", "7"),
    ("metadata_of_null", metadata('{"step":null}'), "ST_ERR_HEADER_METADATA", "null"),
    ("metadata_of_true", metadata('{"step":true}'), "ST_ERR_HEADER_METADATA", "true"),
    ("metadata_of_array", metadata('{"step":["7"]}'), "ST_ERR_HEADER_METADATA", "sequence"),
    ("metadata_nested", metadata('{"config":{"a":"b"}}'), "ST_ERR_HEADER_METADATA", "map"),
    ("metadata_escaped_key_of_number", file('{"__metadata\\u005f_":{"step":7}}'), "ST_ERR_HEADER_METADATA", "7"),
    ("metadata_is_a_tensor", metadata(GOOD), "ST_ERR_HEADER_METADATA", "__metadata__"),
    ("metadata_duplicate", metadata('{"format":"pt","format":"np"}'), "ST_ERR_DUPLICATE_METADATA", '"format"'),
    ("metadata_duplicate_same", metadata('{"format":"pt","format":"pt"}'), "ST_ERR_DUPLICATE_METADATA", '"format"'),
    ("metadata_duplicate_escaped", metadata('{"format":"pt","f\\u006frmat":"np"}'), "ST_ERR_DUPLICATE_METADATA", '"format"'),
    ("metadata_twice", file('{"__metadata__":{},"__metadata__":{}}'), "ST_ERR_DUPLICATE_METADATA", '"__metadata__"'),
    ("metadata_twice_escaped", file('{"__metadata__":{"a":"b"},"\\u005f_metadata__":{}}'), "ST_ERR_DUPLICATE_METADATA", '"__metadata__"'),
    ("metadata_twice_null", file('{"__metadata__":null,"__metadata__":null}'), "ST_ERR_DUPLICATE_METADATA", '"__metadata__"'),
    # Dtypes.
    ("dtype_unknown", one(tensor(dtype='"F33"')), "ST_ERR_HEADER_DTYPE", '"layer.weight" has the unknown dtype "F33"'),
    ("dtype_lowercase", one(tensor(dtype='"u8"')), "ST_ERR_HEADER_DTYPE", '"u8"'),
    ("dtype_of_torch", one(tensor(dtype='"F8_E4M3FN"')), "ST_ERR_HEADER_DTYPE", '"F8_E4M3FN"'),
    ("dtype_empty", one(tensor(dtype='""')), "ST_ERR_HEADER_DTYPE", '""'),
    ("dtype_with_space", one(tensor(dtype='"U8 "')), "ST_ERR_HEADER_DTYPE", '"U8 "'),
    ("dtype_object_unknown", one(tensor(dtype='{"F33":null}')), "ST_ERR_HEADER_DTYPE", '"F33"'),
    ("dtype_terminal_escape", one(tensor(dtype='"\\u001b]0;x\\u0007"')), "ST_ERR_HEADER_DTYPE", r'"\u{1b}]0;x\u{7}"'),
    ("dtype_long", file('{"%s":{"dtype":"%s","shape":[],"data_offsets":[0,0]}}' % ("n" * 1000, "d" * 1000)), "ST_ERR_HEADER_DTYPE", "..."),
    # Names.
    ("name_twice", file('{"a":%s,"b":%s,"a":%s}' % (EMPTY, EMPTY, EMPTY)), "ST_ERR_DUPLICATE_NAME", '"a" occurs twice'),
    ("name_twice_escaped", file('{"a":%s,"\\u0061":%s}' % (EMPTY, EMPTY)), "ST_ERR_DUPLICATE_NAME", '"a" occurs twice'),
    ("name_twice_other_data", file('{"a":%s,"a":%s}' % (GOOD, tensor(offsets="[4,8]")), bytes(8)), "ST_ERR_DUPLICATE_NAME", '"a"'),
    ("name_twice_empty", file('{"":%s,"":%s}' % (EMPTY, EMPTY)), "ST_ERR_DUPLICATE_NAME", '""'),
    ("name_twice_unicode", file('{"\u6743":%s,"\\u6743":%s}' % (EMPTY, EMPTY)), "ST_ERR_DUPLICATE_NAME", '"\u6743"'),
    ("nul_in_name", file('{"a\\u0000b":%s}' % EMPTY), "ST_ERR_NUL_IN_NAME", r'"a\0b"'),
    ("nul_is_name", file('{"\\u0000":%s}' % EMPTY), "ST_ERR_NUL_IN_NAME", r'"\0"'),
    ("nul_in_metadata_key", metadata('{"k\\u0000":"v"}'), "ST_ERR_NUL_IN_NAME", r'"k\0"'),
    # Offsets.
    ("offsets_reversed", one(tensor(offsets="[4,0]")), "ST_ERR_OFFSETS_REVERSED", '"layer.weight" ends at data offset 0 before it starts at 4'),
    ("offsets_reversed_second", two(GOOD, tensor(offsets="[8,4]"), 8), "ST_ERR_OFFSETS_REVERSED", '"second"'),
    ("offsets_reversed_max", one(tensor(offsets="[18446744073709551615,0]")), "ST_ERR_OFFSETS_REVERSED", "18446744073709551615"),
    ("offsets_not_from_0", one(tensor(offsets="[1,5]"), 5), "ST_ERR_OFFSETS_GAP", '"layer.weight" starts at data offset 1'),
    ("offsets_from_max", one(tensor(offsets="[%d,%d]" % (2**64 - 1, 2**64 - 1), shape="[0]")), "ST_ERR_OFFSETS_GAP", "18446744073709551615"),
    ("offsets_gap", two(GOOD, tensor(offsets="[5,9]"), 9), "ST_ERR_OFFSETS_GAP", "1 bytes belong to no tensor"),
    ("offsets_gap_listed_last", two(tensor(offsets="[6,10]"), GOOD, 10), "ST_ERR_OFFSETS_GAP", '"first" starts at data offset 6'),
    ("offsets_gap_before_empty", two(GOOD, tensor(shape="[0]", offsets="[5,5]"), 5), "ST_ERR_OFFSETS_GAP", '"second"'),
    ("offsets_overlap", two(GOOD, tensor(offsets="[3,7]"), 7), "ST_ERR_OFFSETS_OVERLAP", '"second" starts at data offset 3'),
    ("offsets_same", two(GOOD, GOOD, 4), "ST_ERR_OFFSETS_OVERLAP", "overlap by 4 bytes"),
    ("offsets_inside", two(GOOD, tensor(shape="[2]", offsets="[1,3]"), 4), "ST_ERR_OFFSETS_OVERLAP", '"second"'),
    ("offsets_empty_inside", two(GOOD, tensor(shape="[0]", offsets="[2,2]"), 4), "ST_ERR_OFFSETS_OVERLAP", '"second"'),
    # Sizes.
    ("shape_product_overflows", one(tensor(shape="[4294967296,4294967296]")), "ST_ERR_TENSOR_OVERFLOW", '"layer.weight" of U8 [4294967296, 4294967296]'),
    ("shape_wraps_to_the_size", one(tensor(shape="[9223372036854775808,2,4]")), "ST_ERR_TENSOR_OVERFLOW", '"layer.weight"'),
    ("shape_overflows_before_zero", one(tensor(shape="[9223372036854775808,2,0]", offsets="[0,0]"), 0), "ST_ERR_TENSOR_OVERFLOW", '"layer.weight"'),
    ("bits_overflow", one(tensor(shape="[2305843009213693952]")), "ST_ERR_TENSOR_OVERFLOW", "2305843009213693952"),
    ("long_shape_overflows", one(tensor(shape="[%s]" % ",".join(["10"] * 70))), "ST_ERR_TENSOR_OVERFLOW", "70 in all"),
    ("partial_byte_f4", one(tensor(dtype='"F4"', shape="[3]", offsets="[0,2]"), 2), "ST_ERR_TENSOR_PARTIAL_BYTE", '"layer.weight" of F4 takes 12 bits'),
    ("partial_byte_f6", one(tensor(dtype='"F6_E2M3"', shape="[1]", offsets="[0,1]"), 1), "ST_ERR_TENSOR_PARTIAL_BYTE", "6 bits"),
    ("partial_byte_scalar", one(tensor(dtype='"F6_E3M2"', shape="[]", offsets="[0,1]"), 1), "ST_ERR_TENSOR_PARTIAL_BYTE", "F6_E3M2"),
    ("size_too_large", one(tensor(shape="[5]")), "ST_ERR_TENSOR_SIZE", '"layer.weight" of U8 [5] needs 5 bytes'),
    ("size_too_small", one(tensor(shape="[3]")), "ST_ERR_TENSOR_SIZE", "data_offsets span 4"),
    ("size_of_other_dtype", one(tensor(dtype='"F32"', shape="[2]")), "ST_ERR_TENSOR_SIZE", "F32 [2] needs 8 bytes"),
    ("size_of_scalar", one(tensor(shape="[]")), "ST_ERR_TENSOR_SIZE", "needs 1 bytes"),
    ("size_of_empty", one(tensor(shape="[0]")), "ST_ERR_TENSOR_SIZE", "needs 0 bytes"),
    ("size_of_second", two(GOOD, tensor(shape="[2]", offsets="[4,8]"), 8), "ST_ERR_TENSOR_SIZE", '"second"'),
    # The end.
    ("missing_last_byte", one(GOOD, 3), "ST_ERR_TRUNCATED", "cut off"),
    ("missing_data", one(GOOD, 0), "ST_ERR_TRUNCATED", "cut off"),
    ("missing_2_63_bytes", one(tensor(dtype='"U8"', shape="[2305843009213693951]", offsets="[0,2305843009213693951]")), "ST_ERR_TRUNCATED", "23058430092136940"),
    ("missing_beyond_u64", two(
        tensor(dtype='"F4"', shape="[4611686018427387902]", offsets="[0,2305843009213693951]"),
        tensor(dtype='"F4"', shape="[0]", offsets="[2305843009213693951,2305843009213693951]"), 0), "ST_ERR_TRUNCATED", "cut off"),
    ("extra_byte", one(GOOD, 5), "ST_ERR_TRAILING_BYTES", "belongs to no tensor"),
    ("extra_byte_without_tensors", file("{}", b"\0"), "ST_ERR_TRAILING_BYTES", "11 bytes"),
    ("extra_bytes_after_empty_tensor", file('{"a":%s}' % EMPTY, bytes(64)), "ST_ERR_TRAILING_BYTES", "belongs to no tensor"),
]


def beyond_64_bits():
    """Tensors that together end near 2^64, each of a size that fits: no file is that long."""
    step = 2305843009213693951
    entries = ['"t%d":%s' % (i, tensor(shape="[%d]" % step, offsets="[%d,%d]" % (i * step, (i + 1) * step))) for i in range(8)]
    rest = 2**64 - 1 - 8 * step
    entries.append('"t8":' + tensor(shape="[%d]" % rest, offsets="[%d,%d]" % (8 * step, 2**64 - 1)))
    return file("{%s}" % ",".join(entries))


HOSTILE.append(("sizes_end_at_2_64", beyond_64_bits(), "ST_ERR_TRUNCATED", "184467440737095"))


def all_dtypes():
    entries, offset = [], 0
    for dtype, bits in DTYPES.items():
        nbytes = 4 * bits // 8
        entries.append('"%s":%s' % (dtype.lower(), tensor('"%s"' % dtype, "[4]", "[%d,%d]" % (offset, offset + nbytes))))
        offset += nbytes
    return file("{%s}" % ",".join(entries), bytes(i % 256 for i in range(offset)))


# Name, content, number of tensors.
VALID = [
    ("no_tensors", file("{}"), 0),
    ("no_tensors_padded", file("{}      "), 0),
    ("white_space", file(' \n\t\r{ "a" :\n%s } \n' % json.dumps({"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, indent=2), bytes(4)), 1),
    ("rank_0", one(tensor(dtype='"F64"', shape="[]", offsets="[0,8]"), 8), 1),
    ("rank_70", one(tensor(shape="[%s]" % ",".join(["1"] * 69 + ["4"]))), 1),
    ("empty_dimensions", file('{"a":%s,"b":%s,"c":%s}' % (
        tensor(shape="[0]", offsets="[0,0]"), tensor(dtype='"F32"', shape="[3,0,2]", offsets="[0,0]"), GOOD), bytes(4)), 3),
    ("empty_at_the_end", two(GOOD, tensor(shape="[0]", offsets="[4,4]"), 4), 2),
    ("empty_and_huge", one(tensor(shape="[0,9223372036854775808,2]", offsets="[0,0]"), 0), 1),
    ("unaligned_header", file('{"a":%s}   ' % tensor('"F64"', "[2]", "[0,16]"), bytes(range(16))), 1),
    ("unaligned_tensor", two(tensor(shape="[3]", offsets="[0,3]"), tensor('"F32"', "[1]", "[3,7]"), 7), 2),
    ("other_key_order", one('{"data_offsets":[0,4],"shape":[2,2],"dtype":"U8"}'), 1),
    ("unknown_fields", unknown_field('{"a":[1,-2.5e3,"\\ud83d\\ude00",{"a":1,"a":2}],"b":null}'), 1),
    ("unknown_field_nested_125", unknown_field("[" * 125 + "]" * 125), 1),
    ("array_form", one('["U8",[4],[0,4]]'), 1),
    ("dtype_object", one(tensor(dtype='{"U8":null}')), 1),
    ("dtype_escaped", one(tensor(dtype='"\\u00558"')), 1),
    ("field_escaped", one('{"\\u0064type":"U8","shape":[4],"data_offsets":[0,4]}'), 1),
    ("metadata_null", file('{"__metadata__":null,"a":%s}' % GOOD, bytes(4)), 1),
    ("metadata_empty", file('{"__metadata__":{},"a":%s}' % GOOD, bytes(4)), 1),
    ("metadata_last", file('{"a":%s,"__metadata__":{"":"","k":"v\\u0000w"}}' % GOOD, bytes(4)), 1),
    ("metadata_escaped", file('{"\\u005f_metadata__":{"k":"v"}}'), 0),
    ("metadata_named_like_tensor", file('{"__metadata__":{"a":"b"},"a":%s}' % GOOD, bytes(4)), 1),
    ("header_order", file('{"z":%s,"m":%s,"a":%s}' % (
        tensor(offsets="[8,12]"), tensor(offsets="[0,4]"), tensor(offsets="[4,8]")), bytes(range(12))), 3),
    ("unicode_names", file('{"\u6743\u91cd":%s,"\\u00e9":%s,"e\u0301":%s,"\\ud83d\\ude00":%s,"":%s," ":%s,"a/b.c\\\\d\\"":%s}' % ((EMPTY,) * 7)), 7),
    ("names_alike", file('{"a":%s,"A":%s,"a ":%s,"aa":%s,"a.":%s,"__metadata_":%s}' % ((EMPTY,) * 6)), 6),
    ("all_dtypes", all_dtypes(), 22),
    ("small_elements", two(tensor('"F4"', "[4,3]", "[0,6]"), tensor('"F6_E2M3"', "[2,4]", "[6,12]"), 12), 2),
]


def write(folder, table):
    """Writes the files of a table, and its columns after the content to expected.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    names = [row[0] for row in table]
    assert len(set(names)) == len(names), "two files have the same name"
    lines = []
    for name, content, *expected in table:
        assert len(content) < 10_000, name
        (folder / (name + ".safetensors")).write_bytes(content)
        lines.append("\t".join([name + ".safetensors", *map(str, expected)]) + "\n")
    (folder / "expected.tsv").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    base = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    write(base / "hostile", HOSTILE)
    write(base / "valid", VALID)
