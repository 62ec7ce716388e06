/* Decode a region of a JPEG with libjpeg-turbo: only the blocks that the region needs are transformed and coloured.
 *
 * decode(jpeg, denominator, top, left, height, width, out) -> (rows above, pixels to the left, row length in pixels)
 *
 * decode writes RGB, uint8, HWC into the writable buffer `out`. The region is in pixels of the image scaled by
 * 1/denominator (1, 2, 4 or 8). What is written is larger than the region: the returned triple says where the region
 * begins in it and how long its rows are. The margin is what makes the region's pixels those of a full decode: chroma
 * upsampling looks one sample beyond, and at the border of what is decoded there is nothing to see.
 *
 * Raises ValueError where the bytes are no JPEG that libjpeg-turbo can decode to RGB. The GIL is released.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 1005000
#error "libjpeg-turbo 1.5 or later is needed for jpeg_crop_scanline"
#endif

#define MARGIN 4 /* pixels; two samples of halved chroma */

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
} ErrorManager;

static void on_error(j_common_ptr info) {
  ErrorManager *errors = (ErrorManager *)info->err;
  (*info->err->format_message)(info, errors->message);
  longjmp(errors->escape, 1);
}

static void on_message(j_common_ptr info, int level) { (void)info, (void)level; /* warnings: decoded all the same */ }

static void use_errors(struct jpeg_decompress_struct *jpeg, ErrorManager *errors) {
  jpeg->err = jpeg_std_error(&errors->base);
  errors->base.error_exit = on_error;
  errors->base.emit_message = on_message;
}

typedef struct {
  JDIMENSION top, left, height, width;
} Region;

/* Returns 0, or -1 with errors->message set. On success `shift` and `stride` place the region in `out`. */
static int read_region(const Py_buffer *data, int denominator, Region region, Py_buffer *out, ErrorManager *errors,
                       JDIMENSION *shift_rows, JDIMENSION *shift_columns, JDIMENSION *stride) {
  struct jpeg_decompress_struct jpeg;
  use_errors(&jpeg, errors);
  if (setjmp(errors->escape)) {
    jpeg_destroy_decompress(&jpeg);
    return -1;
  }
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, data->buf, (unsigned long)data->len);
  jpeg_read_header(&jpeg, TRUE);
  jpeg.out_color_space = JCS_RGB;
  jpeg.scale_num = 1;
  jpeg.scale_denom = (unsigned int)denominator;
  jpeg_start_decompress(&jpeg);

  if (region.height > jpeg.output_height || region.top > jpeg.output_height - region.height ||
      region.width > jpeg.output_width || region.left > jpeg.output_width - region.width) {
    snprintf(errors->message, sizeof errors->message, "the region is outside the image of %u x %u pixels",
             jpeg.output_height, jpeg.output_width);
    jpeg_destroy_decompress(&jpeg);
    return -1;
  }
  JDIMENSION right = region.left + region.width + MARGIN, bottom = region.top + region.height + MARGIN;
  JDIMENSION left = region.left > MARGIN ? region.left - MARGIN : 0;
  JDIMENSION top = region.top > MARGIN ? region.top - MARGIN : 0;
  if (right > jpeg.output_width) right = jpeg.output_width;
  if (bottom > jpeg.output_height) bottom = jpeg.output_height;

  JDIMENSION width = right - left;
  if (width < jpeg.output_width) jpeg_crop_scanline(&jpeg, &left, &width); /* moves left to a border of blocks */
  if ((Py_ssize_t)(bottom - top) * width * 3 > out->len) {
    snprintf(errors->message, sizeof errors->message, "out is too small");
    jpeg_destroy_decompress(&jpeg);
    return -1;
  }
  if (top > 0) jpeg_skip_scanlines(&jpeg, top);
  JSAMPROW rows[8];
  for (JDIMENSION row = top; row < bottom; row = jpeg.output_scanline) {
    JDIMENSION count = bottom - row < 8 ? bottom - row : 8;
    for (JDIMENSION k = 0; k < count; k++) rows[k] = (JSAMPROW)out->buf + (size_t)(row - top + k) * width * 3;
    jpeg_read_scanlines(&jpeg, rows, count);
  }
  *shift_rows = region.top - top;
  *shift_columns = region.left - left;
  *stride = width;
  jpeg_destroy_decompress(&jpeg); /* the rows below are never decoded */
  return 0;
}

static PyObject *decode(PyObject *module, PyObject *args) {
  (void)module;
  Py_buffer data, out;
  Region region;
  int denominator;
  if (!PyArg_ParseTuple(args, "y*iIIIIw*", &data, &denominator, &region.top, &region.left, &region.height,
                        &region.width, &out))
    return NULL;
  ErrorManager errors;
  JDIMENSION rows = 0, columns = 0, stride = 0;
  int failed;
  Py_BEGIN_ALLOW_THREADS
  failed = read_region(&data, denominator, region, &out, &errors, &rows, &columns, &stride);
  Py_END_ALLOW_THREADS
  PyBuffer_Release(&data);
  PyBuffer_Release(&out);
  if (failed) {
    PyErr_SetString(PyExc_ValueError, errors.message);
    return NULL;
  }
  return Py_BuildValue("III", rows, columns, stride);
}

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS,
     "decode(jpeg, denominator, top, left, height, width, out) -> (rows above, pixels to the left, row length)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_jpeg", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&definition); }
