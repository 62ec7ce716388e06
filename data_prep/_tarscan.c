/* Read the headers of plain tar members, as nearly all are: several times as fast as Python does.
 *
 * plain_members(member, window, position, end) -> (members, position)
 *
 * `window` holds bytes of a tar; its first byte is a header's, at `position` of the file. Returns the members whose
 * headers lie in the window one after another, as member(name, offset, size, "file"), and where the next header begins.
 * It stops before each header that isn't wholly in the window, that is more than a regular ustar or GNU member with a
 * short name, an octal size and a valid checksum, or whose payload passes `end`: data_prep.tarscan.scan reads those, and
 * says what is wrong with them. So nothing here has to be an error, and all that is accepted here is read there alike.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#define BLOCK 512
/* Fields of a header: POSIX.1-2017, "ustar Interchange Format" */
#define NAME_LENGTH 100
#define SIZE 124
#define CHECKSUM 148
#define TYPE 156
#define PREFIX 345

#define FARTHEST ((long long)1 << 62) /* positions below it can't overflow: a size of eleven octal digits is below 2^33 */

static PyObject *file_kind; /* "file" */

/* The number that `count` octal digits mean, or -1 where one is something else. */
static long long octal(const unsigned char *digits, int count) {
  long long number = 0;
  for (int k = 0; k < count; k++) {
    if (digits[k] < '0' || digits[k] > '7') return -1;
    number = number * 8 + (digits[k] - '0');
  }
  return number;
}

static int ends_number(unsigned char byte) { return byte == 0 || byte == ' '; }

/* The size of the payload, or -1 where the header is none of a plain member. */
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

/* member(name, offset, size, "file"), for a tuple type; NULL with an exception set where memory is short. */
static PyObject *new_member(PyTypeObject *type, const unsigned char *header, long long offset, long long size) {
  const unsigned char *nul = memchr(header, 0, NAME_LENGTH);
  PyObject *name = PyUnicode_DecodeUTF8((const char *)header, nul ? nul - header : NAME_LENGTH, "surrogateescape");
  PyObject *start = PyLong_FromLongLong(offset), *length = PyLong_FromLongLong(size);
  PyObject *member = name && start && length ? type->tp_alloc(type, 4) : NULL;
  if (!member) {
    Py_XDECREF(name), Py_XDECREF(start), Py_XDECREF(length);
    return NULL;
  }
  PyTuple_SET_ITEM(member, 0, name);
  PyTuple_SET_ITEM(member, 1, start);
  PyTuple_SET_ITEM(member, 2, length);
  PyTuple_SET_ITEM(member, 3, Py_NewRef(file_kind));
  return member;
}

static PyObject *plain_members(PyObject *module, PyObject *args) {
  (void)module;
  PyTypeObject *type;
  const unsigned char *window;
  Py_ssize_t room;
  long long position, end;
  if (!PyArg_ParseTuple(args, "O!y#LL", &PyType_Type, &type, &window, &room, &position, &end)) return NULL;
  if (!PyType_IsSubtype(type, &PyTuple_Type)) {
    PyErr_SetString(PyExc_TypeError, "member must be a tuple type");
    return NULL;
  }
  PyObject *members = PyList_New(0);
  if (!members) return NULL;
  Py_ssize_t at = 0; /* of the next header, in the window */
  while (room - at >= BLOCK && position >= 0 && position < FARTHEST && end >= position + BLOCK) {
    long long size = plain_size(window + at), payload = position + BLOCK;
    if (size < 0 || size > end - payload) break;
    PyObject *member = new_member(type, window + at, payload, size);
    if (!member || PyList_Append(members, member) < 0) {
      Py_XDECREF(member);
      Py_DECREF(members);
      return NULL;
    }
    Py_DECREF(member);
    long long whole = BLOCK + (size + BLOCK - 1) / BLOCK * BLOCK;
    position += whole;
    if (whole > room - at) break; /* the next header is beyond the window */
    at += (Py_ssize_t)whole;
  }
  return Py_BuildValue("NL", members, position);
}

static PyMethodDef methods[] = {
    {"plain_members", plain_members, METH_VARARGS,
     "plain_members(member, window, position, end) -> (members, position of the next header)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_tarscan", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__tarscan(void) {
  file_kind = PyUnicode_InternFromString("file");
  return file_kind ? PyModule_Create(&definition) : NULL;
}
