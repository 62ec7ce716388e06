/* Rewrite a JPEG without loss: coefficients are copied or moved, never recomputed from pixels.
 *
 * with_restarts(jpeg) -> bytes
 *   The same image with restart markers, at each of which decoding can begin. All other markers are kept. The interval
 *   between restarts is a few blocks and divides a row of blocks, so that pipeline/imaging/_jpeg.c reads only the
 *   columns and rows that a crop needs.
 *
 * turned(jpeg, orientation) -> bytes
 *   The image rotated upright by its EXIF orientation (2 to 8). Blocks are moved, and the coefficients in them transposed
 *   and negated. EXIF and XMP, which would still state the orientation, are dropped; other markers are kept. A mirrored
 *   side must consist of whole MCUs (8 or 16 pixels): libjpeg can pad a partial MCU only at the right or bottom.
 *
 * The output is a baseline JPEG in one scan, with optimised Huffman tables. Raises ValueError if libjpeg-turbo reports any
 * error or warning; for a progressive JPEG with missing scans, since decoders would smooth the original but not the output;
 * and for a side that can't be mirrored. The GIL is released.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "../../pipeline/imaging/_libjpeg_errors.h"

/* Preferred number of blocks (MCUs) between markers. With 4, which are 64 pixels of a photograph, the markers add 3 % to a
 * file. If the number of blocks per row is prime, there is a marker after each block. */
static const unsigned int INTERVALS[] = {4, 3, 5, 2, 1};

static void on_message(j_common_ptr info, int level) {
  if (level < 0) on_error(info); /* a warning: some of the data is damaged */
}

static unsigned int interval_of(const struct jpeg_decompress_struct *jpeg) {
  unsigned int block = jpeg->num_components == 1 ? DCTSIZE : DCTSIZE * (unsigned int)jpeg->max_h_samp_factor;
  unsigned int blocks = (jpeg->image_width + block - 1) / block;
  const unsigned int *interval = INTERVALS;
  while (blocks % *interval) interval++; /* 1 divides all */
  return *interval;
}

/* Whether all bits of all coefficients are in the file. If a progressive JPEG lacks some, libjpeg-turbo estimates them when
 * it decodes (block smoothing), without a warning. */
static int is_complete(const struct jpeg_decompress_struct *jpeg) {
  if (!jpeg->progressive_mode) return 1;
  for (int component = 0; component < jpeg->num_components; component++)
    for (int k = 0; k < DCTSIZE2; k++)
      if (jpeg->coef_bits[component][k]) return 0; /* the position of the last bit received, or -1 */
  return 1;
}

/* Whether libjpeg writes this marker (JFIF or Adobe) by itself. */
static int is_written_anyway(const struct jpeg_compress_struct *jpeg, const struct jpeg_marker_struct *marker) {
  if (marker->marker == JPEG_APP0 && jpeg->write_JFIF_header)
    return marker->data_length >= 5 && !memcmp(marker->data, "JFIF", 5);
  if (marker->marker == JPEG_APP0 + 14 && jpeg->write_Adobe_marker)
    return marker->data_length >= 5 && !memcmp(marker->data, "Adobe", 5);
  return 0;
}

typedef struct {
  struct jpeg_decompress_struct from;
  struct jpeg_compress_struct to;
  ErrorManager errors;
  unsigned char *bytes;
  unsigned long size;
  int orientation; /* EXIF orientation of `from`, to be undone; 1: add restart markers instead */
} Transcoder;

static void fail(Transcoder *t, const char *message) {
  snprintf(t->errors.message, sizeof t->errors.message, "%s", message);
  longjmp(t->errors.escape, FAILED);
}

/* How each EXIF orientation is undone: mirror the stored columns, mirror the stored rows, then swap rows and columns. */
static int mirrors_columns(int orientation) { return orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8; }
static int mirrors_rows(int orientation) { return orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7; }
static int swaps(int orientation) { return orientation >= 5; }

static JDIMENSION rounded_up(JDIMENSION number, int multiple) {
  return (number + (JDIMENSION)multiple - 1) / (JDIMENSION)multiple * (JDIMENSION)multiple;
}

/* Transform one block: row v, column u of `from` is the coefficient of vertical frequency v and horizontal frequency u.
 * Mirroring negates the cosines of odd frequencies. */
static void turn_block(const JCOEF *from, JCOEF *to, int orientation) {
  int columns = mirrors_columns(orientation), rows = mirrors_rows(orientation), swap = swaps(orientation);
  for (int v = 0; v < DCTSIZE; v++)
    for (int u = 0; u < DCTSIZE; u++) {
      JCOEF value = from[v * DCTSIZE + u];
      if ((columns && u & 1) != (rows && v & 1)) value = (JCOEF)-value;
      to[swap ? u * DCTSIZE + v : v * DCTSIZE + u] = value;
    }
}

/* Swap the fields of rows and columns in the header that will be written. */
static void swap_header(struct jpeg_compress_struct *to) {
  JDIMENSION width = to->image_width;
  to->image_width = to->image_height;
  to->image_height = width;
#if JPEG_LIB_VERSION >= 70
  to->jpeg_width = to->image_width;
  to->jpeg_height = to->image_height;
#endif
  for (int number = 0; number < to->num_components; number++) {
    jpeg_component_info *component = to->comp_info + number;
    int factor = component->h_samp_factor;
    component->h_samp_factor = component->v_samp_factor;
    component->v_samp_factor = factor;
  }
  for (int number = 0; number < NUM_QUANT_TBLS; number++) {
    JQUANT_TBL *table = to->quant_tbl_ptrs[number];
    for (int v = 0; table && v < DCTSIZE; v++)
      for (int u = 0; u < v; u++) {
        UINT16 value = table->quantval[v * DCTSIZE + u];
        table->quantval[v * DCTSIZE + u] = table->quantval[u * DCTSIZE + v];
        table->quantval[u * DCTSIZE + v] = value;
      }
  }
}

/* The transformed coefficients, in arrays owned by `to`. Sizes are in blocks, padded to whole MCUs as libjpeg does. */
static jvirt_barray_ptr *turn(Transcoder *t, jvirt_barray_ptr *coefficients) {
  struct jpeg_decompress_struct *from = &t->from;
  j_common_ptr owner = (j_common_ptr)&t->to;
  int orientation = t->orientation;
  if ((mirrors_columns(orientation) && from->image_width % (unsigned)(from->max_h_samp_factor * DCTSIZE)) ||
      (mirrors_rows(orientation) && from->image_height % (unsigned)(from->max_v_samp_factor * DCTSIZE)))
    fail(t, "a side that is to be mirrored does not consist of whole MCUs");
  jvirt_barray_ptr *turned =
      (jvirt_barray_ptr *)owner->mem->alloc_small(owner, JPOOL_IMAGE, sizeof *turned * (size_t)from->num_components);
  for (int number = 0; number < from->num_components; number++) {
    const jpeg_component_info *component = from->comp_info + number;
    JDIMENSION wide = rounded_up(component->width_in_blocks, component->h_samp_factor);
    JDIMENSION high = rounded_up(component->height_in_blocks, component->v_samp_factor);
    int at_once = swaps(orientation) ? component->h_samp_factor : component->v_samp_factor;
    turned[number] = owner->mem->request_virt_barray(owner, JPOOL_IMAGE, TRUE, swaps(orientation) ? high : wide,
                                                     swaps(orientation) ? wide : high, (JDIMENSION)at_once);
  }
  owner->mem->realize_virt_arrays(owner);
  for (int number = 0; number < from->num_components; number++) {
    const jpeg_component_info *component = from->comp_info + number;
    JDIMENSION wide = rounded_up(component->width_in_blocks, component->h_samp_factor);
    JDIMENSION high = rounded_up(component->height_in_blocks, component->v_samp_factor);
    /* In the order of the output rows: libjpeg can't skip any. */
    for (JDIMENSION row = 0; row < (swaps(orientation) ? wide : high); row++) {
      JBLOCKARRAY out = owner->mem->access_virt_barray(owner, turned[number], row, 1, TRUE);
      for (JDIMENSION column = 0; column < (swaps(orientation) ? high : wide); column++) {
        JDIMENSION x = swaps(orientation) ? row : column, y = swaps(orientation) ? column : row;
        if (mirrors_columns(orientation)) x = wide - 1 - x;
        if (mirrors_rows(orientation)) y = high - 1 - y;
        JBLOCKARRAY in = from->mem->access_virt_barray((j_common_ptr)from, coefficients[number], y, 1, FALSE);
        turn_block(in[0][x], out[0][column], orientation);
      }
    }
  }
  return turned;
}

/* Returns 0, or -1 with errors.message set. `bytes` and `size` describe the output buffer, and afterwards the output: a new
 * buffer if the given one was too small. */
static int transcode(Transcoder *t, const Py_buffer *data) {
  t->from.err = t->to.err = use_errors(&t->errors, on_message);
  if (setjmp(t->errors.escape)) {
    jpeg_destroy_compress(&t->to);
    jpeg_destroy_decompress(&t->from);
    return -1;
  }
  jpeg_create_decompress(&t->from);
  jpeg_create_compress(&t->to);
  jpeg_mem_src(&t->from, data->buf, (unsigned long)data->len);
  jpeg_save_markers(&t->from, JPEG_COM, 0xFFFF);
  for (int number = 0; number < 16; number++) jpeg_save_markers(&t->from, JPEG_APP0 + number, 0xFFFF);
  jpeg_read_header(&t->from, TRUE);
  jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&t->from);
  if (!is_complete(&t->from)) fail(t, "a progressive JPEG that lacks scans");
  jpeg_copy_critical_parameters(&t->from, &t->to);
  t->to.optimize_coding = TRUE;
  if (t->orientation == 1) {
    t->to.restart_interval = interval_of(&t->from);
  } else {
    coefficients = turn(t, coefficients);
    if (swaps(t->orientation)) swap_header(&t->to);
  }
  jpeg_mem_dest(&t->to, &t->bytes, &t->size);
  jpeg_write_coefficients(&t->to, coefficients);
  for (const struct jpeg_marker_struct *marker = t->from.marker_list; marker; marker = marker->next)
    if (!is_written_anyway(&t->to, marker) && !(t->orientation > 1 && marker->marker == JPEG_APP0 + 1))
      jpeg_write_marker(&t->to, marker->marker, marker->data, marker->data_length);
  jpeg_finish_compress(&t->to);
  jpeg_finish_decompress(&t->from);
  jpeg_destroy_compress(&t->to);
  jpeg_destroy_decompress(&t->from);
  return 0;
}

/* The rewritten bytes of `data`; releases `data`. */
static PyObject *written_anew(Py_buffer *data, int orientation) {
  Transcoder t;
  memset(&t, 0, sizeof t);
  t.orientation = orientation;
  t.size = (unsigned long)data->len * 2 + 65536; /* pages that are never written cost nothing */
  unsigned char *room = t.bytes = malloc(t.size);
  if (!room) {
    PyBuffer_Release(data);
    return PyErr_NoMemory();
  }
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = transcode(&t, data);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(data);
  PyObject *result = NULL;
  if (failed)
    PyErr_SetString(PyExc_ValueError, t.errors.message);
  else
    result = PyBytes_FromStringAndSize((const char *)t.bytes, (Py_ssize_t)t.size);
  if (!failed && t.bytes != room) free(t.bytes);
  free(room);
  return result;
}

static PyObject *with_restarts(PyObject *module, PyObject *args) {
  (void)module;
  Py_buffer data;
  if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
  return written_anew(&data, 1);
}

static PyObject *turned(PyObject *module, PyObject *args) {
  (void)module;
  Py_buffer data;
  int orientation;
  if (!PyArg_ParseTuple(args, "y*i", &data, &orientation)) return NULL;
  if (orientation < 2 || orientation > 8) {
    PyBuffer_Release(&data);
    return PyErr_Format(PyExc_ValueError, "orientation %d is not one of 2 to 8", orientation);
  }
  return written_anew(&data, orientation);
}

static PyMethodDef methods[] = {
    {"with_restarts", with_restarts, METH_VARARGS, "with_restarts(jpeg) -> the same image, with restart markers"},
    {"turned", turned, METH_VARARGS, "turned(jpeg, orientation) -> the image upright, without EXIF and XMP"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_lossless", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lossless(void) { return PyModule_Create(&definition); }
