/* Write a JPEG anew, without loss, with restart markers, from which decoding can begin anywhere.
 *
 * with_restarts(jpeg) -> bytes
 *
 * The coefficients stay what they are, and so do EXIF and all other markers. What comes out is baseline, in one scan, with
 * Huffman tables of its own, and a marker behind every few blocks: their number divides those of a row, so that
 * pipeline/imaging/_jpeg.c reads only those of the columns and rows that a crop needs.
 *
 * Raises ValueError if libjpeg-turbo finds anything wrong with the bytes, were it only a warning, and for a progressive JPEG
 * that lacks scans: decoders smooth such an image, but not what would be written. The GIL is released.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "../../pipeline/imaging/_libjpeg_errors.h"

/* Blocks (MCUs) between markers, by preference: of 4, 64 pixels of a photograph, the markers take 3 % of a file. Rows of
 * a prime number of blocks have a marker behind each. */
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

/* Whether all bits of all coefficients have come. Of a progressive JPEG that lacks some libjpeg-turbo guesses them when it
 * decodes (block smoothing), without a warning. */
static int is_complete(const struct jpeg_decompress_struct *jpeg) {
  if (!jpeg->progressive_mode) return 1;
  for (int component = 0; component < jpeg->num_components; component++)
    for (int k = 0; k < DCTSIZE2; k++)
      if (jpeg->coef_bits[component][k]) return 0; /* the position of the last bit that has come, or -1 */
  return 1;
}

/* libjpeg writes JFIF's and Adobe's own markers by itself. */
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
} Transcoder;

/* Returns 0, or -1 with errors.message set. `bytes` and `size` are of a buffer to write to, and then of what was written:
 * another one where that was too small. */
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
  if (!is_complete(&t->from)) {
    snprintf(t->errors.message, sizeof t->errors.message, "a progressive JPEG that lacks scans");
    longjmp(t->errors.escape, FAILED);
  }
  jpeg_copy_critical_parameters(&t->from, &t->to);
  t->to.optimize_coding = TRUE;
  t->to.restart_interval = interval_of(&t->from);
  jpeg_mem_dest(&t->to, &t->bytes, &t->size);
  jpeg_write_coefficients(&t->to, coefficients);
  for (const struct jpeg_marker_struct *marker = t->from.marker_list; marker; marker = marker->next)
    if (!is_written_anyway(&t->to, marker))
      jpeg_write_marker(&t->to, marker->marker, marker->data, marker->data_length);
  jpeg_finish_compress(&t->to);
  jpeg_finish_decompress(&t->from);
  jpeg_destroy_compress(&t->to);
  jpeg_destroy_decompress(&t->from);
  return 0;
}

static PyObject *with_restarts(PyObject *module, PyObject *args) {
  (void)module;
  Py_buffer data;
  if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
  Transcoder t;
  memset(&t, 0, sizeof t);
  t.size = (unsigned long)data.len * 2 + 65536; /* of which the pages that aren't written cost nothing */
  unsigned char *room = t.bytes = malloc(t.size);
  if (!room) {
    PyBuffer_Release(&data);
    return PyErr_NoMemory();
  }
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = transcode(&t, &data);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&data);
  PyObject *result = NULL;
  if (failed)
    PyErr_SetString(PyExc_ValueError, t.errors.message);
  else
    result = PyBytes_FromStringAndSize((const char *)t.bytes, (Py_ssize_t)t.size);
  if (!failed && t.bytes != room) free(t.bytes);
  free(room);
  return result;
}

static PyMethodDef methods[] = {
    {"with_restarts", with_restarts, METH_VARARGS, "with_restarts(jpeg) -> the same picture, with restart markers"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_restart", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__restart(void) { return PyModule_Create(&definition); }
