/* Read the headers of plain tar members, which nearly all are, several times as fast as Python.
 *
 * plain_members(member, window, position, end) -> (members, position)
 * plain_members_of_file(member, fd, position, end) -> (members, position)
 *
 * `window` holds bytes of a tar; it begins with a header, at `position` of the file. Returns the members whose headers
 * are in the window, in order, as member(name, offset, size, "file", head), and the position of the next header. `head`
 * is the payload if it is small and in the window, else empty. For a file, windows are read one after another, up to
 * about a hundred members.
 *
 * Both functions stop before a header that is incomplete, that isn't a regular ustar or GNU member with a short name, an
 * octal size and a valid checksum, or whose payload passes `end`. data_prep.sources.tar_headers.scan reads those and
 * reports errors. So nothing here raises an error for bad data, and every member accepted here is read the same there.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>
#include <unistd.h>

#define BLOCK 512
#define WINDOW 2048 /* bytes: a small member and the next one's header */
#define MOST 128    /* members per call for a file */
#define LARGEST_HEAD 256
/* Fields of a header: POSIX.1-2017, "ustar Interchange Format" */
#define NAME_LENGTH 100
#define SIZE 124
#define CHECKSUM 148
#define TYPE 156
#define PREFIX 345

#define FARTHEST ((long long)1 << 62) /* positions below this can't overflow: a size of eleven octal digits is below 2^33 */

static PyObject *file_kind; /* "file" */

/* The value of `count` octal digits, or -1 if a character is not one. */
static long long octal(const unsigned char *digits, int count) {
  long long number = 0;
  for (int k = 0; k < count; k++) {
    if (digits[k] < '0' || digits[k] > '7') return -1;
    number = number * 8 + (digits[k] - '0');
  }
  return number;
}

static int ends_number(unsigned char byte) { return byte == 0 || byte == ' '; }

/* The size of the payload, or -1 if the header is not that of a plain member. */
static long long plain_size(const unsigned char *header) {
  if (header[TYPE] != '0' || header[PREFIX]) return -1;
  if (!ends_number(header[SIZE + 11]) || !ends_number(header[CHECKSUM + 6]) || !ends_number(header[CHECKSUM + 7]))
    return -1;
  unsigned int sum = 8 * ' '; /* the checksum's own eight bytes count as spaces */
  for (int k = 0; k < BLOCK; k++) sum += header[k];
  for (int k = 0; k < 8; k++) sum -= header[CHECKSUM + k];
  if (octal(header + CHECKSUM, 6) != (long long)sum) return -1;
  return octal(header + SIZE, 11);
}

/* type(name, offset, size, "file", head); NULL with an exception set if memory is short. */
static PyObject *new_member(PyTypeObject *type, const unsigned char *header, long long offset, long long size,
                            Py_ssize_t head_size) {
  const unsigned char *nul = memchr(header, 0, NAME_LENGTH);
  PyObject *name = PyUnicode_DecodeUTF8((const char *)header, nul ? nul - header : NAME_LENGTH, "surrogateescape");
  PyObject *start = PyLong_FromLongLong(offset), *length = PyLong_FromLongLong(size);
  PyObject *head = PyBytes_FromStringAndSize((const char *)header + BLOCK, head_size);
  PyObject *member = name && start && length && head ? type->tp_alloc(type, 5) : NULL;
  if (!member) {
    Py_XDECREF(name), Py_XDECREF(start), Py_XDECREF(length), Py_XDECREF(head);
    return NULL;
  }
  PyTuple_SET_ITEM(member, 0, name);
  PyTuple_SET_ITEM(member, 1, start);
  PyTuple_SET_ITEM(member, 2, length);
  PyTuple_SET_ITEM(member, 3, Py_NewRef(file_kind));
  PyTuple_SET_ITEM(member, 4, head);
  return member;
}

/* Append the members in a window of `room` bytes to `members`. Returns the position after them, or -1 with an exception. */
static long long read_window(PyTypeObject *type, PyObject *members, const unsigned char *window, Py_ssize_t room,
                             long long position, long long end) {
  Py_ssize_t at = 0; /* position of the next header in the window */
  while (room - at >= BLOCK && position < FARTHEST && end >= position + BLOCK) {
    long long size = plain_size(window + at), payload = position + BLOCK;
    if (size < 0 || size > end - payload) break;
    Py_ssize_t head_size = size <= LARGEST_HEAD && size <= room - at - BLOCK ? (Py_ssize_t)size : 0;
    PyObject *member = new_member(type, window + at, payload, size, head_size);
    if (!member || PyList_Append(members, member) < 0) {
      Py_XDECREF(member);
      return -1;
    }
    Py_DECREF(member);
    long long whole = BLOCK + (size + BLOCK - 1) / BLOCK * BLOCK;
    position += whole;
    if (whole > room - at) break; /* the next header is beyond the window */
    at += (Py_ssize_t)whole;
  }
  return position;
}

static int is_tuple_type(PyTypeObject *type) {
  if (PyType_IsSubtype(type, &PyTuple_Type)) return 1;
  PyErr_SetString(PyExc_TypeError, "member must be a tuple type");
  return 0;
}

static PyObject *result(PyObject *members, long long position) {
  if (position >= 0) return Py_BuildValue("NL", members, position);
  Py_DECREF(members);
  return NULL;
}

static PyObject *plain_members(PyObject *module, PyObject *args) {
  (void)module;
  PyTypeObject *type;
  const unsigned char *window;
  Py_ssize_t room;
  long long position, end;
  if (!PyArg_ParseTuple(args, "O!y#LL", &PyType_Type, &type, &window, &room, &position, &end)) return NULL;
  if (!is_tuple_type(type)) return NULL;
  if (position < 0) return PyErr_Format(PyExc_ValueError, "position must not be negative");
  PyObject *members = PyList_New(0);
  return members ? result(members, read_window(type, members, window, room, position, end)) : NULL;
}

static PyObject *plain_members_of_file(PyObject *module, PyObject *args) {
  (void)module;
  PyTypeObject *type;
  int fd;
  long long position, end;
  if (!PyArg_ParseTuple(args, "O!iLL", &PyType_Type, &type, &fd, &position, &end)) return NULL;
  if (!is_tuple_type(type)) return NULL;
  if (position < 0) return PyErr_Format(PyExc_ValueError, "position must not be negative");
  PyObject *members = PyList_New(0);
  if (!members) return NULL;
  unsigned char window[WINDOW];
  long long before = -1;
  while (position > before && PyList_GET_SIZE(members) < MOST) {
    ssize_t room;
    Py_BEGIN_ALLOW_THREADS
    room = pread(fd, window, sizeof window, position);
    Py_END_ALLOW_THREADS
    before = position;
    position = read_window(type, members, window, room, position, end); /* room is -1 if reading failed: no members */
  }
  return result(members, position);
}

static PyMethodDef methods[] = {
    {"plain_members", plain_members, METH_VARARGS,
     "plain_members(member, window, position, end) -> (members, position of the next header)"},
    {"plain_members_of_file", plain_members_of_file, METH_VARARGS,
     "plain_members_of_file(member, fd, position, end) -> (members, position of the next header)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_tar_headers", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__tar_headers(void) {
  file_kind = PyUnicode_InternFromString("file");
  return file_kind ? PyModule_Create(&definition) : NULL;
}
