/* Antialiased bicubic resizing of a box of an RGB image, as Pillow defines it: first along the rows, then along the columns,
 * each with Keys' kernel (a = -1/2), widened by the scale when shrinking, renormalised at the image's border, and clipped to
 * 0 to 255. Within one grey level of Pillow, which rounds to 8 bits between the two passes.
 *
 * Fixed point: pixels have 6 fraction bits, taps 14, and rounded products 5. Written as loops over LANES
 * neighbours of 16 bits, which compilers turn into vector instructions. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 32           /* values that are summed in parallel */
#define ROWS (LANES / 4)   /* rows that are resized in parallel: a pixel is red, green, blue and an unused value */
#define WHITE (255 << 5)
#define ONE (1 << 14)      /* a tap of 1; taps can be larger at the image's border, and negative */

/* If the compiler supports it: a second version for AVX2, selected when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FAST __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef FAST
#define FAST
#endif

typedef struct {
  size_t first, count; /* input pixels that contribute to an output pixel */
  int16_t *taps;
} Window;

static double keys(double x) {
  x = x < 0 ? -x : x;
  double near = (1.5 * x - 2.5) * x * x + 1, far = ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return x < 1 ? near : x < 2 ? far : 0;
}

/* The windows of `length` output pixels, made of the input from `low` to `high` out of `size` pixels. NULL: no memory. */
static Window *make_windows(int size, double low, double high, int length) {
  double scale = (high - low) / length, wide = scale > 1 ? scale : 1, reach = 2 * wide;
  int most = (int)(2 * reach) + 3;
  Window *windows = malloc((size_t)length * (sizeof(Window) + (size_t)most * sizeof(int16_t)) + (size_t)most * sizeof(double));
  if (!windows) return NULL;
  double *weights = (double *)(windows + length);
  int16_t *taps = (int16_t *)(weights + most);
  for (int i = 0; i < length; i++, taps += most) {
    double centre = low + (i + 0.5) * scale, sum = 0;
    int first = (int)(centre - reach + 0.5), last = (int)(centre + reach + 0.5), left = ONE, largest = 0;
    if (first < 0) first = 0;
    if (last > size) last = size;
    int count = last - first;
    for (int k = 0; k < count; k++) sum += weights[k] = keys((first + k - centre + 0.5) / wide);
    for (int k = 0; k < count; k++) {
      taps[k] = (int16_t)((int)(weights[k] / sum * ONE + ONE + 0.5) - ONE); /* rounds: a cast alone truncates towards 0 */
      left -= taps[k];
      if (taps[k] > taps[largest]) largest = k;
    }
    taps[largest] = (int16_t)(taps[largest] + left); /* so that they add up to 1 */
    windows[i] = (Window){(size_t)first, (size_t)count, taps};
  }
  return windows;
}

/* LANES sums of values that are `stride` apart, with 5 fraction bits, clipped to black and white. */
static inline void weigh(const int16_t *restrict values, size_t stride, const int16_t *restrict taps, size_t count,
                         int16_t *restrict sums) {
  int16_t sum[LANES];
  for (int lane = 0; lane < LANES; lane++) sum[lane] = 0;
  for (size_t k = 0; k < count; k++)
    for (int lane = 0; lane < LANES; lane++)
      sum[lane] = (int16_t)(sum[lane] + (int16_t)(((((int32_t)values[k * stride + lane] * taps[k]) >> 14) + 1) >> 1));
  for (int lane = 0; lane < LANES; lane++) {
    int16_t value = sum[lane] < WHITE ? sum[lane] : WHITE;
    sums[lane] = value > 0 ? value : 0;
  }
}

/* Rows `first` to `first + count` of the image, resized to `width`, into `resized`: rows of `stride` values. */
FAST static void resize_rows(const Py_buffer *image, size_t first, size_t count, const Window *columns, size_t width,
                             int16_t *resized, size_t stride, int16_t *block, int16_t *values) {
  size_t from = columns[0].first, length = columns[width - 1].first + columns[width - 1].count - from, line = 3 * length + 1;
  for (size_t top = 0; top < count; top += ROWS) {
    for (size_t r = 0; r < ROWS; r++) {
      size_t row = first + (top + r < count ? top + r : count - 1);
      const uint8_t *pixels = (const uint8_t *)image->buf + (Py_ssize_t)row * image->strides[0] + 3 * from;
      for (size_t i = 0; i < 3 * length; i++) values[r * line + i] = (int16_t)(pixels[i] << 6);
    }
    for (size_t x = 0; x < length; x++)
      for (size_t r = 0; r < ROWS; r++) memcpy(block + x * LANES + 4 * r, values + r * line + 3 * x, 4 * sizeof *values);
    for (size_t x = 0; x < width; x++) {
      int16_t sums[LANES];
      weigh(block + (columns[x].first - from) * LANES, LANES, columns[x].taps, columns[x].count, sums);
      for (int lane = 0; lane < LANES; lane++) sums[lane] = (int16_t)(sums[lane] * 2); /* 6 fraction bits */
      for (size_t r = 0; r < ROWS; r++) /* the next pixel's first value overwrites the fourth */
        memcpy(resized + (top + r) * stride + 3 * x, sums + 4 * r, 4 * sizeof *sums);
    }
  }
}

/* The output rows, from those in `resized`, the first of which is row `first` of the image. */
FAST static void resize_columns(const int16_t *resized, size_t first, size_t stride, const Window *rows, const Py_buffer *out,
                                uint8_t *row) {
  for (Py_ssize_t y = 0; y < out->shape[0]; y++) {
    const int16_t *top = resized + (rows[y].first - first) * stride;
    for (size_t x = 0; x < stride; x += LANES) {
      int16_t sums[LANES];
      weigh(top + x, stride, rows[y].taps, rows[y].count, sums);
      for (int lane = 0; lane < LANES; lane++) row[x + lane] = (uint8_t)((sums[lane] + 16) >> 5);
    }
    memcpy((uint8_t *)out->buf + y * out->strides[0], row, (size_t)out->shape[1] * 3);
  }
}

static int resize_box(const Py_buffer *image, const double *box, const Py_buffer *out) {
  size_t height = (size_t)out->shape[0], width = (size_t)out->shape[1], length = (size_t)image->shape[1];
  Window *rows = make_windows((int)image->shape[0], box[0], box[2], (int)height);
  Window *columns = make_windows((int)image->shape[1], box[1], box[3], (int)width);
  int done = 0;
  if (rows && columns) {
    size_t first = rows[0].first, count = rows[height - 1].first + rows[height - 1].count - first;
    size_t stride = (width * 3 / LANES + 1) * LANES, resized_length = (count / ROWS + 1) * ROWS * stride;
    int16_t *resized = malloc((resized_length + length * LANES + ROWS * (3 * length + 1)) * sizeof *resized + stride);
    if (resized) {
      int16_t *block = resized + resized_length, *values = block + length * LANES;
      resize_rows(image, first, count, columns, width, resized, stride, block, values);
      resize_columns(resized, first, stride, rows, out, (uint8_t *)(values + ROWS * (3 * length + 1)));
      free(resized);
      done = 1;
    }
  }
  free(rows);
  free(columns);
  return done;
}

static int is_image(const Py_buffer *buffer) {
  return buffer->ndim == 3 && buffer->itemsize == 1 && buffer->shape[2] == 3 && buffer->strides[2] == 1 &&
         buffer->strides[1] == 3 && buffer->shape[0] > 0 && buffer->shape[1] > 0 && buffer->shape[0] < 1 << 20 &&
         buffer->shape[1] < 1 << 20;
}

static PyObject *resize(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *from, *to;
  double box[4];
  if (!PyArg_ParseTuple(args, "OddddO", &from, &box[0], &box[1], &box[2], &box[3], &to)) return NULL;
  Py_buffer image, out;
  if (PyObject_GetBuffer(from, &image, PyBUF_STRIDES)) return NULL;
  if (PyObject_GetBuffer(to, &out, PyBUF_STRIDES | PyBUF_WRITABLE)) {
    PyBuffer_Release(&image);
    return NULL;
  }
  int sound = is_image(&image) && is_image(&out), done = 0;
  sound = sound && 0 <= box[0] && box[0] < box[2] && box[2] <= (double)image.shape[0];
  sound = sound && 0 <= box[1] && box[1] < box[3] && box[3] <= (double)image.shape[1];
  if (sound) {
    Py_BEGIN_ALLOW_THREADS
    done = resize_box(&image, box, &out);
    Py_END_ALLOW_THREADS
  }
  PyBuffer_Release(&image);
  PyBuffer_Release(&out);
  if (!sound) return PyErr_Format(PyExc_ValueError, "not RGB images of 8 bits, or the box is outside the image");
  if (!done) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"resize", resize, METH_VARARGS, "resize(image, top, left, bottom, right, out): fill out with the box of the image, resized"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_bicubic", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__bicubic(void) { return PyModule_Create(&definition); }
