/* Work done once per image, for the common case: a plain JPEG with an ASCII key.
 *
 * jpeg_header(jpeg) -> (width, height, components, orientation, scan) or None
 *     Reads the markers up to the first scan (ITU-T T.81, annex B). None if anything is unusual or there is EXIF.
 * tar_headers(key, size, label) -> (before, after) or None
 *     The bytes around the `size` bytes of <key>.jpg in a WebDataset tar: its header before; padding and <key>.cls after.
 *     None if the name needs more than a USTAR header.
 *
 * After None, data_prep.images.prepare and data_prep.writing.tar_writer do the work in Python and report errors; without
 * this extension they always do. So nothing here raises an error for bad data, and results are the same as theirs.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdio.h>
#include <string.h>

/* Markers */
#define EOI 0xD9
#define SOS 0xDA
#define APP1 0xE1

#define BLOCK 512
/* Fields of a header: POSIX.1-2017, "ustar Interchange Format" */
#define NAME_LENGTH 100
#define MODE 100
#define SIZE 124
#define CHECKSUM 148
#define TYPE 156
#define MAGIC 257
#define LARGEST_SIZE ((long long)1 << 33) /* bytes: eleven octal digits */
#define ENDING_LENGTH 4                   /* of ".jpg" and ".cls" */

/* Whether a frame header (19 bytes) has 8 bits per sample, DCT coding, and sampling factors that TurboJPEG supports. */
static int is_usual(const unsigned char *frame) {
  const int marker = frame[1], luma = frame[11];
  if (marker > 0xC2 && marker != 0xC9 && marker != 0xCA) return 0;
  if (frame[4] != 8) return 0;
  if (frame[9] != 3) return 1;
  if (frame[14] != 0x11 || frame[17] != 0x11) return 0;
  return luma == 0x11 || luma == 0x21 || luma == 0x22 || luma == 0x12 || luma == 0x41;
}

static PyObject *jpeg_header(PyObject *module, PyObject *jpeg) {
  (void)module;
  if (!PyBytes_Check(jpeg)) return PyErr_Format(PyExc_TypeError, "jpeg must be bytes");
  const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(jpeg);
  const Py_ssize_t end = PyBytes_GET_SIZE(jpeg);
  int width = 0, height = 0, components = 0;
  Py_ssize_t at = 2;
  while (at + 4 <= end && data[at] == 0xFF) {
    const unsigned char *segment = data + at;
    const int marker = segment[1], length = segment[2] << 8 | segment[3];
    if (marker == SOS) {
      if (!components) break;
      return Py_BuildValue("iiiin", width, height, components, 1, at);
    }
    if (marker < 0xC0 || marker == 0xFF || (marker >= 0xD0 && marker <= EOI) || length < 2) break;
    if (marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) { /* a frame header */
      if (at + 19 > end || !is_usual(segment)) break;
      height = segment[5] << 8 | segment[6], width = segment[7] << 8 | segment[8], components = segment[9];
      if (!width || !height || (components != 1 && components != 3 && components != 4)) break;
    } else if (marker == APP1 && at + 10 <= end && !memcmp(segment + 4, "Exif\0", 6)) {
      break;
    }
    at += 2 + length;
  }
  Py_RETURN_NONE;
}

/* Write a header with mode 0644, owner 0 and time 0 for the member named by key and ending. */
static void write_header(char *header, const char *key, Py_ssize_t key_length, const char *ending, long long size) {
  memset(header, 0, BLOCK);
  memcpy(header, key, (size_t)key_length);
  memcpy(header + key_length, ending, ENDING_LENGTH);
  memcpy(header + MODE, "0000644\0" "0000000\0" "0000000", 23);
  memcpy(header + SIZE, "00000000000\0" "00000000000", 23); /* size and time */
  for (int digit = SIZE + 10; size; digit--, size >>= 3) header[digit] = (char)('0' + (size & 7));
  memcpy(header + CHECKSUM, "        ", 8);
  header[TYPE] = '0';
  memcpy(header + MAGIC, "ustar\0" "00", 8);
  unsigned int sum = 0;
  for (int k = 0; k < BLOCK; k++) sum += (unsigned char)header[k];
  for (int digit = CHECKSUM + 5; digit >= CHECKSUM; digit--, sum >>= 3) header[digit] = (char)('0' + (sum & 7));
  header[CHECKSUM + 6] = 0;
}

static Py_ssize_t padding(long long size) { return (Py_ssize_t)((BLOCK - size % BLOCK) % BLOCK); }

static PyObject *tar_headers(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *key;
  long long size;
  int label;
  if (!PyArg_ParseTuple(args, "ULi", &key, &size, &label)) return NULL;
  if (size < 0 || label < 0) return PyErr_Format(PyExc_ValueError, "size and label must not be negative");
  const Py_ssize_t key_length = PyUnicode_GET_LENGTH(key);
  if (!PyUnicode_IS_ASCII(key) || key_length > NAME_LENGTH - ENDING_LENGTH || size >= LARGEST_SIZE) Py_RETURN_NONE;
  const char *name = PyUnicode_DATA(key);

  char text[16];
  const int text_length = snprintf(text, sizeof text, "%d", label);
  const Py_ssize_t gap = padding(size), after_length = gap + BLOCK + BLOCK;
  PyObject *before = PyBytes_FromStringAndSize(NULL, BLOCK), *after = PyBytes_FromStringAndSize(NULL, after_length);
  if (!before || !after) {
    Py_XDECREF(before), Py_XDECREF(after);
    return NULL;
  }
  write_header(PyBytes_AS_STRING(before), name, key_length, ".jpg", size);
  char *at = PyBytes_AS_STRING(after);
  memset(at, 0, (size_t)after_length);
  write_header(at + gap, name, key_length, ".cls", text_length);
  memcpy(at + gap + BLOCK, text, (size_t)text_length);
  return Py_BuildValue("NN", before, after);
}

static PyMethodDef methods[] = {
    {"jpeg_header", jpeg_header, METH_O, "jpeg_header(jpeg) -> (width, height, components, orientation, scan) or None"},
    {"tar_headers", tar_headers, METH_VARARGS, "tar_headers(key, size, label) -> (before, after) or None"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_sample", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__sample(void) { return PyModule_Create(&definition); }
