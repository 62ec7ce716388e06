/* libjpeg's errors, returned to the caller with longjmp instead of ending the process. */

#include <setjmp.h>
#include <stdio.h>
#include <jpeglib.h>

#define FAILED 1 /* as setjmp's result: errors->message has the reason */

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
} ErrorManager;

static void on_error(j_common_ptr info) {
  ErrorManager *errors = (ErrorManager *)info->err;
  (*info->err->format_message)(info, errors->message);
  longjmp(errors->escape, FAILED);
}

/* `on_message` receives warnings, whose level is below 0, and traces. */
static struct jpeg_error_mgr *use_errors(ErrorManager *errors, void (*on_message)(j_common_ptr info, int level)) {
  jpeg_std_error(&errors->base);
  errors->base.error_exit = on_error;
  errors->base.emit_message = on_message;
  return &errors->base;
}
