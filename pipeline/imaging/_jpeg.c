/* Decode a region of a JPEG with libjpeg-turbo: only the blocks that the region needs are transformed to RGB.
 *
 * decode(jpeg, denominator, top, left, height, width, out, check=False)
 *     -> (rows above, pixels to the left, row length, fast)
 * is_sound(jpeg) -> bool
 * library() -> str
 *
 * decode writes RGB, uint8, HWC into the writable buffer `out`. The region is in pixels of the image scaled by
 * 1/denominator (1, 2, 4 or 8). The output is larger than the region: the result states where the region begins in it, its
 * row length in pixels, and whether _huffman.h read the JPEG. With this margin the region's pixels equal those of a full
 * decode: chroma upsampling uses the neighbouring samples, which are missing at the border of the decoded area.
 *
 * _huffman.h reads the Huffman codes; libjpeg-turbo does everything else. If a JPEG has restart markers
 * (data_prep.shard --restart), codes outside the region aren't read at all.
 *
 * is_sound reads all Huffman codes and decodes nothing. It is false for unusual image data, and for all that need
 * libjpeg-turbo's own reader (progressive JPEGs), damaged or not. Unusual headers don't matter: the pixels are the same.
 * With `check`, decode reads all codes too, each once, and `fast` is what is_sound would return. The pixels are the same.
 *
 * library returns the path of libjpeg-turbo's library: pipeline/imaging/jpeg.py checks its version before any other call.
 *
 * decode raises ValueError if the bytes are not a JPEG that libjpeg-turbo can decode to RGB. The GIL is released.
 */

#define _GNU_SOURCE /* dladdr */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "_libjpeg_errors.h"
#include <jerror.h>
#include "_huffman.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 1005000
#error "libjpeg-turbo 1.5 or later is needed for jpeg_crop_scanline"
#endif

#define MARGIN 4 /* pixels; two samples of halved chroma */
#define ODD 2    /* as setjmp's result: libjpeg-turbo's own reader must decode */

/* Decode despite warnings, unless the bytes end inside the header, which libjpeg-turbo would then invent. */
static void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;
  info->err->num_warnings++;
  if (info->err->msg_code == JWRN_JPEG_EOF && !((j_decompress_ptr)info)->output_width) on_error(info);
}

typedef struct {
  JDIMENSION top, left, height, width;
} Region;

/* The Huffman-coded data of a JPEG in one scan, read instead of by libjpeg-turbo's own reader. */
typedef struct {
  size_t start, end; /* in `bytes`, without the zeros stuffed after each 0xFF; both 0: not needed */
} Interval;

typedef struct {
  HuffmanTable dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
  unsigned char *bytes; /* of the needed intervals, followed by the intervals themselves; freed together */
  Interval *intervals;
  int in_use;
  JDIMENSION interval_size, interval; /* in MCUs (blocks of all components); the current one */
  unsigned char ending;               /* the marker after the last interval; 0: none */
  int check;                          /* read all MCUs in turn, needed or not, and require that they are sound */
  JDIMENSION count;                   /* of MCUs in the image */
  JDIMENSION first_row, last_row, first_column, last_column; /* MCUs that are needed */
  JDIMENSION row, column, number, next; /* of the MCU that libjpeg-turbo requests; the next one in the bytes */
  struct {
    const HuffmanTable *dc, *ac;
    int *previous;
  } blocks[D_MAX_BLOCKS_IN_MCU];
  int block_count;
  int previous[MAX_COMPS_IN_SCAN];
  BitReader reader;
} Scan;

#define NONE ((JDIMENSION)-1)
#define PADDING (MOST_MCU_BYTES + 16)

/* The decoder's methods are not in jpeglib.h. Since libjpeg 6 (1995) and up to libjpeg-turbo 3.1 they begin with these two
 * (jpegint.h, "Entropy decoding"). */
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr jpeg);
  boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
};

static int is_needed(const Scan *scan, JDIMENSION from, JDIMENSION until, JDIMENSION a_row) {
  if (scan->check) return 1;
  JDIMENSION row = from / a_row, last_row = (until - 1) / a_row;
  if (last_row < scan->first_row || row > scan->last_row) return 0;
  return row != last_row || (from % a_row <= scan->last_column && (until - 1) % a_row >= scan->first_column);
}

/* Find the intervals between restart markers (a single one if there are none) up to `last`, and copy the needed ones.
 * Returns whether the markers are valid. */
static int copy_intervals(Scan *scan, const unsigned char *at, size_t size, JDIMENSION last, JDIMENSION a_row) {
  const unsigned char *end = at + size;
  unsigned char *out = scan->bytes + 1; /* no interval begins at 0 */
  for (JDIMENSION number = 0; number <= last; number++) {
    int needed = is_needed(scan, number * scan->interval_size, (number + 1) * scan->interval_size, a_row);
    unsigned char *start = out, marker = 0;
    while (!marker) {
      const unsigned char *found = memchr(at, 0xFF, (size_t)(end - at));
      const unsigned char *stop = found ? found + 1 : end;
      if (needed) memcpy(out, at, (size_t)(stop - at)), out += stop - at;
      at = stop;
      if (!found) break;
      marker = at < end ? *at++ : 0xFF; /* an incomplete marker */
    }
    if (needed) {
      if (marker) out--; /* its 0xFF */
      scan->intervals[number] = (Interval){(size_t)(start - scan->bytes), (size_t)(out - scan->bytes)};
    }
    if (number < last && marker != 0xD0 + number % 8) return 0;
    scan->ending = marker;
  }
  memset(out, 0, PADDING);
  return 1;
}

static void begin_interval(Scan *scan, JDIMENSION interval) {
  scan->interval = interval;
  scan->next = interval * scan->interval_size;
  scan->reader = (BitReader){scan->bytes + scan->intervals[interval].start, 0, 0};
  memset(scan->previous, 0, sizeof scan->previous);
}

/* Prepare `scan` so that libjpeg-turbo calls read_mcu while it decodes rows `top` to `bottom` and columns `left` to
 * `right`, in output pixels. Returns whether this reader supports the JPEG: it must be baseline, in one scan. With
 * scan->check, which the caller sets, its markers must be sound to the end. */
static int take_over(Scan *scan, j_decompress_ptr jpeg, JDIMENSION top, JDIMENSION bottom, JDIMENSION left, JDIMENSION right) {
  if (jpeg->progressive_mode || jpeg->arith_code || jpeg->data_precision != 8) return 0;
  /* Some phones write 0 for the last coefficient (Se), which has no meaning in a baseline JPEG. Lossless ones have Ss > 0. */
  if (jpeg->Ss || (jpeg->Se && jpeg->Se != DCTSIZE2 - 1) || jpeg->Ah || jpeg->Al) return 0;
  if (jpeg->comps_in_scan != jpeg->num_components) return 0;
  for (int k = 0; k < jpeg->comps_in_scan; k++) {
    int dc = jpeg->cur_comp_info[k]->dc_tbl_no, ac = jpeg->cur_comp_info[k]->ac_tbl_no;
    const JHUFF_TBL *dc_table = jpeg->dc_huff_tbl_ptrs[dc], *ac_table = jpeg->ac_huff_tbl_ptrs[ac];
    if (!dc_table || !fill_table(&scan->dc[dc], dc_table->bits + 1, dc_table->huffval, 1)) return 0;
    if (!ac_table || !fill_table(&scan->ac[ac], ac_table->bits + 1, ac_table->huffval, 0)) return 0;
  }
  scan->block_count = jpeg->blocks_in_MCU;
  for (int k = 0; k < jpeg->blocks_in_MCU; k++) {
    const jpeg_component_info *component = jpeg->cur_comp_info[jpeg->MCU_membership[k]];
    scan->blocks[k].dc = &scan->dc[component->dc_tbl_no];
    scan->blocks[k].ac = &scan->ac[component->ac_tbl_no];
    scan->blocks[k].previous = &scan->previous[jpeg->MCU_membership[k]];
  }
  JDIMENSION a_row = jpeg->MCUs_per_row, rows = jpeg->MCU_rows_in_scan, side = DCTSIZE / jpeg->scale_denom;
  JDIMENSION width = side, height = side; /* of an MCU, in output pixels */
  if (jpeg->comps_in_scan > 1) width *= (JDIMENSION)jpeg->max_h_samp_factor, height *= (JDIMENSION)jpeg->max_v_samp_factor;
  /* one more at each side, as upsampling uses the neighbours */
  scan->first_row = top / height ? top / height - 1 : 0;
  scan->first_column = left / width ? left / width - 1 : 0;
  scan->last_row = (bottom - 1) / height + 1 < rows ? (bottom - 1) / height + 1 : rows - 1;
  scan->last_column = (right - 1) / width + 1 < a_row ? (right - 1) / width + 1 : a_row - 1;
  scan->count = a_row * rows;
  scan->interval_size = jpeg->restart_interval ? jpeg->restart_interval : scan->count;
  JDIMENSION last = (scan->check ? scan->count - 1 : scan->last_row * a_row + scan->last_column) / scan->interval_size;

  size_t size = jpeg->src->bytes_in_buffer, count = last + 1;
  if (count > size / 2 + 1) return 0; /* there can't be that many markers */
  size_t room = (size + 1 + PADDING + sizeof(Interval)) / sizeof(Interval) * sizeof(Interval);
  scan->bytes = malloc(room + count * sizeof(Interval));
  if (!scan->bytes) return 0;
  scan->intervals = memset(scan->bytes + room, 0, count * sizeof(Interval));
  scan->interval = NONE;
  scan->row = scan->column = scan->number = 0;
  if (!copy_intervals(scan, jpeg->src->next_input_byte, size, last, a_row)) return 0;
  if (scan->check) begin_interval(scan, 0);
  return !scan->check || scan->ending == 0xD9;
}

/* The number of bits left in the interval; negative if more than its bits were taken. */
static int64_t bits_left(const Scan *scan) {
  return ((int64_t)scan->intervals[scan->interval].end - (scan->reader.at - scan->bytes)) * 8 + scan->reader.count;
}

/* Read the next MCU's blocks; into `blocks` unless it is NULL. Returns whether the data were valid. */
static inline int read_blocks(Scan *scan, JBLOCKROW *blocks) {
  BitReader reader = scan->reader;
  for (int k = 0; k < scan->block_count; k++)
    if (!read_block(&reader, scan->blocks[k].dc, scan->blocks[k].ac, scan->blocks[k].previous, blocks ? *blocks[k] : NULL))
      return 0;
  scan->reader = reader;
  scan->next++;
  return bits_left(scan) >= 0;
}

/* Read the rest of the current interval. Returns whether it was valid and nothing follows its last MCU. */
static int finish_interval(Scan *scan) {
  JDIMENSION end = (scan->interval + 1) * scan->interval_size;
  if (end > scan->count) end = scan->count;
  while (scan->next < end)
    if (!read_blocks(scan, NULL)) return 0;
  return bits_left(scan) < 8; /* the last byte is padded */
}

/* Read everything before `interval`. Returns whether it was sound. */
static int read_until(Scan *scan, JDIMENSION interval) {
  for (; scan->interval != interval; begin_interval(scan, scan->interval + 1))
    if (!finish_interval(scan)) return 0;
  return 1;
}

/* Read everything that is left. Returns whether it was sound. */
static int read_rest(Scan *scan) {
  return read_until(scan, (scan->count - 1) / scan->interval_size) && finish_interval(scan);
}

/* Called by libjpeg-turbo for each MCU in turn; blocks that aren't needed stay zero. Unusual data end the decoding. */
static boolean read_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
  Scan *scan = jpeg->client_data;
  JDIMENSION number = scan->number++, row = scan->row, column = scan->column++;
  if (scan->column == jpeg->MCUs_per_row) scan->column = 0, scan->row++;
  if (!blocks || row < scan->first_row || row > scan->last_row || column < scan->first_column || column > scan->last_column)
    return TRUE;
  JDIMENSION interval = number / scan->interval_size;
  int sound = 1;
  if (scan->check)
    sound = read_until(scan, interval);
  else if (interval != scan->interval)
    begin_interval(scan, interval);
  while (sound && scan->next < number) sound = read_blocks(scan, NULL);
  if (!sound || !read_blocks(scan, blocks)) longjmp(((ErrorManager *)jpeg->err)->escape, ODD);
  return TRUE;
}

/* Returns 0; FAILED with errors->message set; or ODD, which needs a `scan`. `shift` and `stride` locate the region in
 * `out`. */
static int read_region(const Py_buffer *data, int denominator, Region region, Py_buffer *out, ErrorManager *errors, Scan *scan,
                       JDIMENSION *shift_rows, JDIMENSION *shift_columns, JDIMENSION *stride) {
  struct jpeg_decompress_struct jpeg;
  jpeg.err = use_errors(errors, on_message);
  switch (setjmp(errors->escape)) {
    case 0: break;
    case ODD: jpeg_destroy_decompress(&jpeg); return ODD;
    default: jpeg_destroy_decompress(&jpeg); return FAILED;
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
    longjmp(errors->escape, FAILED);
  }
  JDIMENSION right = region.left + region.width + MARGIN, bottom = region.top + region.height + MARGIN;
  JDIMENSION left = region.left > MARGIN ? region.left - MARGIN : 0;
  JDIMENSION top = region.top > MARGIN ? region.top - MARGIN : 0;
  if (right > jpeg.output_width) right = jpeg.output_width;
  if (bottom > jpeg.output_height) bottom = jpeg.output_height;

  JDIMENSION width = right - left;
  if (width < jpeg.output_width) jpeg_crop_scanline(&jpeg, &left, &width); /* moves `left` to a block's edge */
  if ((Py_ssize_t)(bottom - top) * width * 3 > out->len) {
    snprintf(errors->message, sizeof errors->message, "out is too small");
    longjmp(errors->escape, FAILED);
  }
  if (scan && take_over(scan, &jpeg, top, bottom, left, left + width)) {
    scan->in_use = 1;
    jpeg.client_data = scan;
    jpeg.entropy->decode_mcu = read_mcu;
  }
  if (top > 0) jpeg_skip_scanlines(&jpeg, top);
  JSAMPROW rows[8];
  for (JDIMENSION row = top; row < bottom; row = jpeg.output_scanline) {
    JDIMENSION count = bottom - row < 8 ? bottom - row : 8;
    for (JDIMENSION k = 0; k < count; k++) rows[k] = (JSAMPROW)out->buf + (size_t)(row - top + k) * width * 3;
    jpeg_read_scanlines(&jpeg, rows, count);
  }
  if (scan && scan->check && scan->in_use) scan->in_use = read_rest(scan);
  *shift_rows = region.top - top;
  *shift_columns = region.left - left;
  *stride = width;
  jpeg_destroy_decompress(&jpeg); /* the rows below are never decoded */
  return 0;
}

static int check(const Py_buffer *data, ErrorManager *errors, Scan *scan) {
  struct jpeg_decompress_struct jpeg;
  jpeg.err = use_errors(errors, on_message);
  volatile int sound = 0;
  if (!setjmp(errors->escape)) {
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, data->buf, (unsigned long)data->len);
    jpeg_read_header(&jpeg, TRUE);
    if (jpeg_has_multiple_scans(&jpeg)) longjmp(errors->escape, ODD); /* all of them would be read */
    jpeg.out_color_space = JCS_RGB; /* as for decoding: fails for CMYK */
    jpeg_start_decompress(&jpeg);
    sound = take_over(scan, &jpeg, 0, jpeg.output_height, 0, jpeg.output_width) && read_rest(scan);
  }
  jpeg_destroy_decompress(&jpeg);
  return sound;
}

static PyObject *is_sound(PyObject *module, PyObject *argument) {
  (void)module;
  Py_buffer data;
  if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE)) return NULL;
  ErrorManager errors;
  Scan *scan = malloc(sizeof *scan);
  if (!scan) {
    PyBuffer_Release(&data);
    return PyErr_NoMemory();
  }
  scan->bytes = NULL;
  scan->check = 1;
  int sound;
  Py_BEGIN_ALLOW_THREADS
  sound = check(&data, &errors, scan);
  Py_END_ALLOW_THREADS
  free(scan->bytes);
  free(scan);
  PyBuffer_Release(&data);
  return PyBool_FromLong(sound);
}

static PyObject *library(PyObject *module, PyObject *nothing) {
  (void)module, (void)nothing;
  Dl_info found;
  if (!dladdr((void *)jpeg_std_error, &found) || !found.dli_fname) return PyUnicode_FromString("");
  return PyUnicode_DecodeFSDefault(found.dli_fname);
}

static PyObject *decode(PyObject *module, PyObject *args) {
  (void)module;
  Py_buffer data, out;
  Region region;
  int denominator, check = 0;
  if (!PyArg_ParseTuple(args, "y*iIIIIw*|p", &data, &denominator, &region.top, &region.left, &region.height,
                        &region.width, &out, &check))
    return NULL;
  if (denominator != 1 && denominator != 2 && denominator != 4 && denominator != 8) {
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return PyErr_Format(PyExc_ValueError, "the denominator is %d and must be 1, 2, 4 or 8", denominator);
  }
  ErrorManager errors;
  JDIMENSION rows = 0, columns = 0, stride = 0;
  int failed, fast;
  Scan *scan = malloc(sizeof *scan);
  if (scan) scan->bytes = NULL, scan->in_use = 0, scan->check = check;
  Py_BEGIN_ALLOW_THREADS
  failed = read_region(&data, denominator, region, &out, &errors, scan, &rows, &columns, &stride);
  fast = scan && scan->in_use && !failed;
  if (failed == ODD) failed = read_region(&data, denominator, region, &out, &errors, NULL, &rows, &columns, &stride);
  Py_END_ALLOW_THREADS
  if (scan) free(scan->bytes);
  free(scan);
  PyBuffer_Release(&data);
  PyBuffer_Release(&out);
  if (failed) {
    PyErr_SetString(PyExc_ValueError, errors.message);
    return NULL;
  }
  return Py_BuildValue("IIIO", rows, columns, stride, fast ? Py_True : Py_False);
}

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS,
     "decode(jpeg, denominator, top, left, height, width, out, check=False)"
     " -> (rows above, pixels to the left, row length, fast)"},
    {"library", library, METH_NOARGS, "library() -> path of libjpeg-turbo's library, \"\" if unknown"},
    {"is_sound", is_sound, METH_O, "is_sound(jpeg) -> whether all of its Huffman codes are valid"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_jpeg", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&definition); }
