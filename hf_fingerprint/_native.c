/* Passes over weights and codewords that numpy would make one by one, each fused into one.

   Every function here has a counterpart in numpy, which is the reference and is used where this file was not compiled:
   see native.py. The arithmetic is that of the counterpart, operation by operation; only sums may be added in another
   order. All sizes are checked before a pass starts, and no pass allocates. The interpreter is released meanwhile. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only little-endian machines are supported; numpy does the work on others"
#endif

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, CHUNK = 4096, ROWS = 4 };

typedef float vfloat __attribute__((vector_size(64), aligned(1), may_alias));
typedef int32_t vint __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint16_t vshort __attribute__((vector_size(64), aligned(1), may_alias));
typedef int8_t vbyte __attribute__((vector_size(32), aligned(1), may_alias));

/* The bits of two bytes, the highest of each first. */
static const vint LANE_BITS = {0x80,   0x40,   0x20,   0x10,   0x8,   0x4,   0x2,   0x1,
                               0x8000, 0x4000, 0x2000, 0x1000, 0x800, 0x400, 0x200, 0x100};

#define SPLAT(value) ((vint){0} + (int32_t)(value))
#define SPLAT_FLOAT(value) ((vfloat){0} + (value))
#define LOAD(type, address) (*(const type *)(address))
#define SELECT(mask, yes, no) ((vfloat)(((mask) & (vint)(yes)) | (~(mask) & (vint)(no))))

typedef uint16_t uint16_unaligned __attribute__((aligned(1), may_alias));

typedef struct {
    double power, product, square; /* of the clipped differences; of both tensors; of the base's weights */
    uint64_t dropped;
} totals;

/* The widest vectors that the processor has are chosen when the module is loaded. */
#define NAME(name) name##_plain
#include "_native_passes.h"
#undef NAME
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDER
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(name) name##_avx2
#include "_native_passes.h"
#undef NAME
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#define NAME(name) name##_avx512
#include "_native_passes.h"
#undef NAME
#pragma GCC pop_options
#endif

#define PASSES(width) {pack_biased_##width, score_rows_##width, read_weights_##width, fold_weights_##width, \
                       add_mark_##width, add_mark_half_##width}
static struct {
    void (*pack_biased)(const uint16_t *, const uint16_t *, uint8_t *, size_t);
    void (*score_rows)(const uint8_t *const[ROWS], const float *, size_t, double *);
    void (*read_weights)(const uint8_t *, int, const uint8_t *, int, const float *, size_t, float, const uint8_t *,
                         size_t, size_t, float *, size_t, totals *);
    void (*fold_weights)(const float *, const uint8_t *, size_t, size_t, float *, size_t);
    void (*add_mark)(float *, const float *, size_t, size_t, const uint8_t *);
    void (*add_mark_half)(uint16_t *, const float *, size_t, size_t, const uint8_t *, const uint16_t *);
} const ALL_PASSES[] = {
    PASSES(plain),
#ifdef WIDER
    PASSES(avx2),
    PASSES(avx512),
#endif
}, *passes = ALL_PASSES;

/* ---- Python ---- */

static PyObject *refuse(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++) PyBuffer_Release(&buffers[i]);
    PyErr_SetString(PyExc_ValueError, "the sizes of the arrays don't fit");
    return NULL;
}

static PyObject *release(Py_buffer *buffers, int count, PyObject *result) {
    for (int i = 0; i < count; i++) PyBuffer_Release(&buffers[i]);
    return result;
}

static PyObject *py_pack_biased(PyObject *self, PyObject *arguments) {
    Py_buffer b[3];
    if (!PyArg_ParseTuple(arguments, "y*y*w*:pack_biased", &b[0], &b[1], &b[2])) return NULL;
    size_t length = (size_t)b[1].len / 2, rows = length ? (size_t)b[0].len / 2 / length : 0;
    if (!length || length % 8 || (size_t)b[0].len != 2 * rows * length || (size_t)b[2].len != rows * length / 8)
        return refuse(b, 3);
    Py_BEGIN_ALLOW_THREADS;
    for (size_t row = 0; row < rows; row++)
        passes->pack_biased((const uint16_t *)b[0].buf + row * length, b[1].buf,
                            (uint8_t *)b[2].buf + row * length / 8, length);
    Py_END_ALLOW_THREADS;
    return release(b, 3, Py_NewRef(Py_None));
}

static PyObject *py_score_packed(PyObject *self, PyObject *arguments) {
    Py_buffer b[3];
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "y*y*w*n:score_packed", &b[0], &b[1], &b[2], &length)) return NULL;
    size_t size = (size_t)length / 8, rows = size ? (size_t)b[0].len / size : 0;
    size_t functions = size ? (size_t)b[1].len / 4 / (size_t)length : 0;
    if (length <= 0 || length % 8 || (size_t)b[0].len != rows * size ||
        (size_t)b[1].len != 4 * functions * (size_t)length || (size_t)b[2].len != 8 * rows * functions)
        return refuse(b, 3);
    Py_BEGIN_ALLOW_THREADS;
    double *out = b[2].buf;
    for (size_t row = 0; row < rows; row += ROWS) {
        const uint8_t *packed[ROWS];
        for (size_t k = 0; k < ROWS; k++)
            packed[k] = (const uint8_t *)b[0].buf + (row + k < rows ? row + k : row) * size;
        for (size_t function = 0; function < functions; function++) {
            double sums[ROWS] = {0};
            passes->score_rows(packed, (const float *)b[1].buf + function * (size_t)length, (size_t)length, sums);
            for (size_t k = 0; k < ROWS && row + k < rows; k++) out[(row + k) * functions + function] = sums[k];
        }
    }
    Py_END_ALLOW_THREADS;
    return release(b, 3, Py_NewRef(Py_None));
}

static PyObject *py_read_weights(PyObject *self, PyObject *arguments) {
    Py_buffer b[5];
    Py_ssize_t columns, position;
    int their_half, our_half;
    double clip;
    if (!PyArg_ParseTuple(arguments, "y*py*py*ndy*nw*:read_weights", &b[0], &their_half, &b[1], &our_half, &b[2],
                          &columns, &clip, &b[3], &position, &b[4]))
        return NULL;
    size_t count = (size_t)b[0].len / (their_half ? 2 : 4), length = (size_t)b[4].len / 4;
    size_t rows = (size_t)b[2].len / 4;
    if (columns < 0 || position < 0 || (size_t)position >= length || position % 8 || length % 8 ||
        (size_t)b[0].len % (their_half ? 2 : 4) || (size_t)b[1].len != count * (our_half ? 2 : 4) ||
        count != rows * (size_t)columns || (size_t)b[3].len < (count + 7) / 8)
        return refuse(b, 5);
    totals total = {0};
    Py_BEGIN_ALLOW_THREADS;
    passes->read_weights(b[0].buf, their_half, b[1].buf, our_half, b[2].buf, (size_t)columns, (float)clip, b[3].buf,
                         count, (size_t)position, b[4].buf, length, &total);
    Py_END_ALLOW_THREADS;
    return release(b, 5, Py_BuildValue("dddK", total.power, total.product, total.square, total.dropped));
}

/* Fills a buffer from a file; 0 if it could, 1 if the file ended too soon, and -1 with `errno` if it can't be read. */
static int read_fully(int descriptor, uint8_t *buffer, size_t size, off_t offset) {
    while (size) {
        ssize_t got = pread(descriptor, buffer, size, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? -1 : 1;
        buffer += got;
        offset += got;
        size -= (size_t)got;
    }
    return 0;
}

static PyObject *py_read_files(PyObject *self, PyObject *arguments) {
    Py_buffer b[5];
    Py_ssize_t columns, position, step;
    long long offsets[2];
    int descriptors[2], half[2], failed = 0, file = 0, number = 0;
    double clip;
    if (!PyArg_ParseTuple(arguments, "(iLp)(iLp)y*ndy*nw*nw*w*:read_files", &descriptors[0], &offsets[0], &half[0],
                          &descriptors[1], &offsets[1], &half[1], &b[0], &columns, &clip, &b[1], &position, &b[2],
                          &step, &b[3], &b[4]))
        return NULL;
    size_t rows = (size_t)b[0].len / 4, length = (size_t)b[2].len / 4, width[2] = {half[0] ? 2 : 4, half[1] ? 2 : 4};
    size_t most = (size_t)PY_SSIZE_T_MAX / 8, block = 0;
    if (columns <= 0 || step <= 0 || step % 8 || (size_t)step > most / (size_t)columns ||
        rows > most / (size_t)columns || position < 0 || (size_t)position >= length || position % 8 || length % 8 ||
        (size_t)b[1].len < (rows * (size_t)columns + 7) / 8)
        return refuse(b, 5);
    block = (rows < (size_t)step ? rows : (size_t)step) * (size_t)columns;
    if ((size_t)b[3].len < block * width[0] || (size_t)b[4].len < block * width[1]) return refuse(b, 5);
    totals total = {0};
    Py_BEGIN_ALLOW_THREADS;
    for (size_t row = 0; row < rows && !failed; row += (size_t)step) {
        size_t first = row * (size_t)columns, part = rows - row < (size_t)step ? rows - row : (size_t)step;
        size_t count = part * (size_t)columns;
        for (file = 0; file < 2; file++) {
            off_t offset = (off_t)(offsets[file] + (long long)(first * width[file]));
            failed = read_fully(descriptors[file], b[3 + file].buf, count * width[file], offset);
            if (failed) break;
        }
        if (failed) break;
        passes->read_weights(b[3].buf, half[0], b[4].buf, half[1], (const float *)b[0].buf + row, (size_t)columns,
                             (float)clip, (const uint8_t *)b[1].buf + first / 8, count,
                             ((size_t)position + first) % length, b[2].buf, length, &total);
    }
    number = errno;
    Py_END_ALLOW_THREADS;
    if (failed < 0) {
        errno = number;
        return release(b, 5, PyErr_SetFromErrno(PyExc_OSError));
    }
    if (failed) {
        PyErr_SetString(PyExc_EOFError, file ? "ours" : "theirs");
        return release(b, 5, NULL);
    }
    return release(b, 5, Py_BuildValue("dddK", total.power, total.product, total.square, total.dropped));
}

static PyObject *py_fold_weights(PyObject *self, PyObject *arguments) {
    Py_buffer b[3];
    Py_ssize_t position;
    if (!PyArg_ParseTuple(arguments, "y*y*nw*:fold_weights", &b[0], &b[1], &position, &b[2])) return NULL;
    size_t count = (size_t)b[0].len / 4, length = (size_t)b[2].len / 4;
    if (position < 0 || (size_t)position >= length || position % 8 || length % 8 ||
        (size_t)b[1].len < (count + 7) / 8)
        return refuse(b, 3);
    Py_BEGIN_ALLOW_THREADS;
    passes->fold_weights(b[0].buf, b[1].buf, count, (size_t)position, b[2].buf, length);
    Py_END_ALLOW_THREADS;
    return release(b, 3, Py_NewRef(Py_None));
}

static PyObject *py_add_mark(PyObject *self, PyObject *arguments) {
    Py_buffer b[3];
    if (!PyArg_ParseTuple(arguments, "w*y*y*:add_mark", &b[0], &b[1], &b[2])) return NULL;
    size_t count = (size_t)b[0].len / 4, rows = (size_t)b[1].len / 4, columns = rows ? count / rows : 0;
    if (count != rows * columns || (size_t)b[2].len < (count + 7) / 8) return refuse(b, 3);
    Py_BEGIN_ALLOW_THREADS;
    passes->add_mark(b[0].buf, b[1].buf, rows, columns, b[2].buf);
    Py_END_ALLOW_THREADS;
    return release(b, 3, Py_NewRef(Py_None));
}

static PyObject *py_add_mark_half(PyObject *self, PyObject *arguments) {
    Py_buffer b[4];
    if (!PyArg_ParseTuple(arguments, "w*y*y*y*:add_mark_half", &b[0], &b[1], &b[2], &b[3])) return NULL;
    size_t count = (size_t)b[0].len / 2, rows = (size_t)b[1].len / 4, columns = rows ? count / rows : 0;
    if (count != rows * columns || (size_t)b[2].len < (count + 7) / 8 || (size_t)b[3].len != 2 * count)
        return refuse(b, 4);
    Py_BEGIN_ALLOW_THREADS;
    passes->add_mark_half(b[0].buf, b[1].buf, rows, columns, b[2].buf, b[3].buf);
    Py_END_ALLOW_THREADS;
    return release(b, 4, Py_NewRef(Py_None));
}

static Py_ssize_t widths = 1;

static PyObject *py_use_width(PyObject *self, PyObject *arguments) {
    Py_ssize_t number;
    if (!PyArg_ParseTuple(arguments, "n:use_width", &number)) return NULL;
    if (number < 0 || number >= widths) return refuse(NULL, 0);
    passes = &ALL_PASSES[number];
    return Py_NewRef(Py_None);
}

static PyMethodDef METHODS[] = {
    {"use_width", py_use_width, METH_VARARGS, "use_width(number)"},
    {"pack_biased", py_pack_biased, METH_VARARGS, "pack_biased(stream, thresholds, out)"},
    {"score_packed", py_score_packed, METH_VARARGS, "score_packed(packed, weights, out, length)"},
    {"read_weights", py_read_weights, METH_VARARGS,
     "read_weights(theirs, theirs_half, ours, ours_half, inverse, columns, clip, signs, position, sums)"},
    {"read_files", py_read_files, METH_VARARGS,
     "read_files(theirs, ours, inverse, columns, clip, signs, position, sums, step, their_buffer, our_buffer)"},
    {"fold_weights", py_fold_weights, METH_VARARGS, "fold_weights(values, signs, position, sums)"},
    {"add_mark", py_add_mark, METH_VARARGS, "add_mark(values, amplitude, signs)"},
    {"add_mark_half", py_add_mark_half, METH_VARARGS, "add_mark_half(values, amplitude, signs, random)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", "Fused passes; see native.py.", 0, METHODS,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
#ifdef WIDER
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) widths = 2;
    if (widths == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        widths = 3;
#endif
    passes = &ALL_PASSES[widths - 1];
    PyObject *module = PyModule_Create(&MODULE);
    if (module != NULL && PyModule_AddIntConstant(module, "WIDTHS", (long)widths) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
