/* The processor, and the system's services for a process. */
#include "../cpu.h"
#include "../os.h"
#include "seam.h"

static PyObject *state(int (*read)(uint64_t *), const char *call)
{
  uint64_t mask = 0;
  const int error = read(&mask);
  return error == 0 ? PyLong_FromUnsignedLongLong(mask) : call_error(error, call);
}

/* saved_state() -> XCR0: a bit mask of the register sets that the kernel saves */
PyObject *saved_state(PyObject *module, PyObject *unused)
{
  return state(cpu_saved_state, "xgetbv");
}

/* requestable_state() -> the same of those that a program may ask the kernel for; bit 18 is AMX */
PyObject *requestable_state(PyObject *module, PyObject *unused)
{
  return state(cpu_requestable_state, "arch_prctl(ARCH_GET_XCOMP_SUPP)");
}

/* end_with_parent(signal) -> None: send this process the signal when its parent's thread ends */
PyObject *end_with_parent(PyObject *module, PyObject *args)
{
  int number;
  if (!PyArg_ParseTuple(args, "i", &number))
    return NULL;
  return none_or_error(os_end_with_parent(number), "prctl(PR_SET_PDEATHSIG)");
}

/* count_event(type, config) -> file descriptor: see os_count_event in os.h */
PyObject *count_event(PyObject *module, PyObject *args)
{
  unsigned int type;
  unsigned long long config;
  if (!PyArg_ParseTuple(args, "IK", &type, &config))
    return NULL;
  int file;
  const int error = os_count_event(type, config, &file);
  return error == 0 ? PyLong_FromLong(file) : call_error(error, "perf_event_open");
}
