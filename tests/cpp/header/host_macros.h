/* Macros that hosts define before they include the headers: those of <windows.h>, X11, macOS and Objective-C, Qt, and of old C. */

/* <windows.h> and the headers that it includes */
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far
#define small char
#define hyper __int64
#define interface struct
#define cdecl
#define pascal
#define PASCAL
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define BOOL int
#define TRUE 1
#define FALSE 0
#define YES 1
#define NO 0
#define STRICT 1
#define DELETE 0x00010000L
#define ERROR 0
#define NO_ERROR 0L
#define NONE 0
#define ABSOLUTE 1
#define RELATIVE 2
#define OPAQUE 2
#define TRANSPARENT 1
#define THIS void
#define Yield()
#define LoadImage LoadImageA
#define CreateFile CreateFileA
#define DeleteFile DeleteFileA
#define GetObject GetObjectA
#define GetMessage GetMessageA
#define GetFreeSpace(w) (0x100000L)

/* <X11/X.h>, <X11/Xlib.h> */
#define All 0
#define None 0L
#define Success 0
#define Status int
#define Bool int
#define True 1
#define False 0
#define Always 2
#define Above 0
#define Below 1
#define Complex 0
#define Convex 2
#define Unsorted 0
#define CurrentTime 0L
#define KeyPress 2
#define FocusIn 9
#define FocusOut 10
#define BadRequest 1
#define BadValue 2
#define BadAlloc 11
#define Button1 1
#define Display int
#define Root 1

/* <AssertMacros.h> of macOS, Objective-C */
#define check(assertion)
#define check_noerr(status)
#define verify(assertion) ((void)(assertion))
#define verify_noerr(status) ((void)(status))
#define require(assertion, label)
#define nil 0
#define Nil 0

/* Qt */
#define signals public
#define slots
#define emit
#define foreach(variable, container) for (variable : container)
#define forever for (;;)

/* <sys/sysmacros.h>, <math.h>, <strings.h> of old systems, <complex.h> */
#define major(device) ((device) >> 8)
#define minor(device) ((device)&255)
#define DOMAIN 1
#define OVERFLOW 3
#define UNDERFLOW 4
#define I 1

/* Logging and testing libraries */
#define LOG(severity) 0
#define CHECK(condition) ((void)(condition))
#define ASSERT(condition) ((void)(condition))
#define EXPECT(condition) ((void)(condition))
#define DEBUG 1
#define INFO 2
#define WARNING 3
#define FATAL 4
#define UNUSED
#define PACKED
#define ALIGN(n)
