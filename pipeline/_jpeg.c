/* Decode a region of a JPEG with libjpeg-turbo: only the blocks that the region needs are transformed and coloured.
 *
 * decode(jpeg, denominator, top, left, height, width, out) -> (rows above, pixels to the left, row length in pixels)
 *
 * decode writes RGB, uint8, HWC into the writable buffer `out`. The region is in pixels of the image scaled by
 * 1/denominator (1, 2, 4 or 8). What is written is larger than the region: the returned triple says where the region
 * begins in it and how long its rows are. The margin is what makes the region's pixels those of a full decode: chroma
 * upsampling looks one sample beyond, and at the border of what is decoded there is nothing to see.
 *
 * Of a JPEG with restart markers (data_prep.shard --restart), the Huffman codes outside the region aren't read either.
 *
 * Raises ValueError where the bytes are no JPEG that libjpeg-turbo can decode to RGB. The GIL is released.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* A JPEG with restart markers, cut to some of its intervals without decoding any. */
typedef struct {
  unsigned char *bytes; /* to be freed */
  size_t size;
  JDIMENSION top, left; /* of the cut in the image, pixels */
} Cut;

#define MOST_COMPONENTS 4
#define HEADER_SLACK 64 /* bytes of the cut besides those of the image: its end, and room to write markers anew */

static unsigned int two_bytes(const unsigned char *at) { return (unsigned int)at[0] << 8 | at[1]; }

/* Cut `jpeg` to the intervals between restart markers that hold the pixels of `needed` inside the image. Returns
 * whether it could: the JPEG must be baseline, in one scan, with intervals that divide its rows of blocks, all there.
 *
 * A restart marker sets the decoder back to its start, so an interval decodes to the same coefficients wherever it stands.
 */
static int cut_to_intervals(const unsigned char *jpeg, size_t size, Region needed, Cut *cut) {
  size_t at = 2, frame = 0, used = 2; /* position of the next segment; of SOF's payload in the cut */
  JDIMENSION height = 0, width = 0, interval = 0, block_height = 8, block_width = 8;
  if (size < 4 || jpeg[0] != 0xFF || jpeg[1] != 0xD8) return 0;
  unsigned char *out = malloc(size + HEADER_SLACK);
  if (!out) return 0;
  memcpy(out, jpeg, 2);
  for (;;) { /* segments up to the scan */
    if (at + 4 > size || jpeg[at] != 0xFF) goto not_cut;
    unsigned char marker = jpeg[at + 1];
    size_t length = 2 + two_bytes(jpeg + at + 2);
    if (marker == 0xFF || (marker >= 0xD0 && marker <= 0xD9) || length < 4 || length > size - at) goto not_cut;
    const unsigned char *payload = jpeg + at + 4;
    if (marker == 0xDD) { /* DRI */
      if (length != 6) goto not_cut;
      interval = two_bytes(payload);
    } else if (marker == 0xC0) { /* SOF0 */
      if (frame || length < 10 || payload[5] < 1 || payload[5] > MOST_COMPONENTS || length != 10u + 3 * payload[5])
        goto not_cut;
      height = two_bytes(payload + 1), width = two_bytes(payload + 3);
      frame = used + 4;
      if (payload[5] > 1) /* of one component, a block is 8 x 8 whatever its factors say */
        for (int k = 0; k < payload[5]; k++) {
          JDIMENSION across = 8u * (payload[7 + 3 * k] >> 4), down = 8u * (payload[7 + 3 * k] & 15);
          if (across > block_width) block_width = across;
          if (down > block_height) block_height = down;
        }
    } else if (marker > 0xC0 && marker < 0xD0 && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
      goto not_cut; /* another SOF: not baseline */
    } else if (marker == 0xDA && (length < 5 || !frame || payload[0] != out[frame + 5])) {
      goto not_cut; /* several scans */
    }
    if ((marker >= 0xE1 && marker != 0xEE && marker <= 0xEF) || marker == 0xFE) { /* says nothing about the pixels */
      at += length;
      continue;
    }
    memcpy(out + used, jpeg + at, length);
    at += length, used += length;
    if (marker == 0xDA) break;
  }
  if (!interval || !width || !height) goto not_cut;
  JDIMENSION blocks = (width + block_width - 1) / block_width; /* in a row */
  if (blocks % interval || needed.top >= height || needed.left >= width) goto not_cut;
  if (needed.height > height - needed.top) needed.height = height - needed.top;
  if (needed.width > width - needed.left) needed.width = width - needed.left;
  JDIMENSION a_row = blocks / interval, interval_width = interval * block_width;
  JDIMENSION first_row = needed.top / block_height, end_row = (needed.top + needed.height - 1) / block_height + 1;
  JDIMENSION first = needed.left / interval_width, end = (needed.left + needed.width - 1) / interval_width + 1;

  size_t began = at; /* of the interval */
  unsigned int taken = 0;
  JDIMENSION rows = (height + block_height - 1) / block_height;
  for (JDIMENSION number = 0; number < end_row * a_row; number++) {
    const unsigned char *found = jpeg + began;
    do { /* the marker that ends the interval: 0xFF 0x00 is a byte of it */
      found = memchr(found, 0xFF, (size_t)(jpeg + size - found));
      if (!found || found + 1 >= jpeg + size) goto not_cut;
      found += 2;
    } while (found[-1] == 0);
    unsigned char expected = number + 1 == rows * a_row ? 0xD9 : (unsigned char)(0xD0 + number % 8);
    if (found[-1] != expected) goto not_cut;
    JDIMENSION row = number / a_row, column = number % a_row;
    if (row >= first_row && column >= first && column < end) {
      size_t length = (size_t)(found - 2 - (jpeg + began));
      if (taken) out[used++] = 0xFF, out[used++] = (unsigned char)(0xD0 + (taken - 1) % 8);
      memcpy(out + used, jpeg + began, length);
      used += length, taken++;
    }
    began = (size_t)(found - jpeg);
  }
  out[used++] = 0xFF, out[used++] = 0xD9;
  cut->top = first_row * block_height, cut->left = first * interval_width;
  JDIMENSION cut_height = (end_row == rows ? height : end_row * block_height) - cut->top;
  JDIMENSION cut_width = (end == a_row ? width : end * interval_width) - cut->left;
  out[frame + 1] = (unsigned char)(cut_height >> 8), out[frame + 2] = (unsigned char)cut_height;
  out[frame + 3] = (unsigned char)(cut_width >> 8), out[frame + 4] = (unsigned char)cut_width;
  cut->bytes = out, cut->size = used;
  return 1;
not_cut:
  free(out);
  return 0;
}

/* Returns 0, or -1 with errors->message set. On success `shift` and `stride` place the region in `out`. */
static int read_region(const unsigned char *data, size_t size, int denominator, Region region, Py_buffer *out,
                       ErrorManager *errors, JDIMENSION *shift_rows, JDIMENSION *shift_columns, JDIMENSION *stride) {
  struct jpeg_decompress_struct jpeg;
  use_errors(&jpeg, errors);
  if (setjmp(errors->escape)) {
    jpeg_destroy_decompress(&jpeg);
    return -1;
  }
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, data, (unsigned long)size);
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

/* As read_region, of no more of the JPEG than needed where it has restart markers. */
static int read_cut(const Py_buffer *data, int denominator, Region region, Py_buffer *out, ErrorManager *errors,
                    JDIMENSION *shift_rows, JDIMENSION *shift_columns, JDIMENSION *stride) {
  JDIMENSION scale = (JDIMENSION)denominator, above = region.top < MARGIN ? region.top : MARGIN;
  JDIMENSION before = region.left < MARGIN ? region.left : MARGIN;
  Cut cut;
  Region needed = {(region.top - above) * scale, (region.left - before) * scale, (region.height + above + MARGIN) * scale,
                   (region.width + before + MARGIN) * scale};
  if (!cut_to_intervals(data->buf, (size_t)data->len, needed, &cut))
    return read_region(data->buf, (size_t)data->len, denominator, region, out, errors, shift_rows, shift_columns, stride);
  region.top -= cut.top / scale, region.left -= cut.left / scale; /* both are multiples of 8 */
  int failed = read_region(cut.bytes, cut.size, denominator, region, out, errors, shift_rows, shift_columns, stride);
  free(cut.bytes);
  return failed;
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
  failed = read_cut(&data, denominator, region, &out, &errors, &rows, &columns, &stride);
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
