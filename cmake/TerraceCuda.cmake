# The CUDA toolkit, if it is here. Only <cuda.h> and nvcc are used: the driver is opened at run time and nothing of
# CUDA is linked.
#   TERRACE_CUDA   AUTO (with the toolkit where it is found), ON (required), OFF
# Sets TERRACE_HAVE_CUDA; declares terrace_cuda_headers (interface) and terrace_kernels().
set(TERRACE_CUDA AUTO CACHE STRING "GPU support: AUTO, ON or OFF")
set(TERRACE_CUDA_ARCHITECTURES "80;90;100" CACHE STRING "GPU architectures to compile kernels for; PTX of the last one, too")
set(TERRACE_HAVE_CUDA OFF)
if(NOT TERRACE_CUDA STREQUAL "OFF")
  find_program(TERRACE_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
  find_path(TERRACE_CUDA_INCLUDE cuda.h HINTS $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda/include
    NO_CMAKE_SYSTEM_PATH)
  if(TERRACE_NVCC AND TERRACE_CUDA_INCLUDE)
    set(TERRACE_HAVE_CUDA ON)
  elseif(TERRACE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TERRACE_CUDA=ON: no CUDA toolkit (nvcc, cuda.h). Install it, set CUDA_HOME, or build with "
      "-DTERRACE_CUDA=OFF")
  else()
    message(STATUS "No CUDA toolkit: built without GPU support")
  endif()
endif()
# NCCL's header comes with the toolkit, with libnccl-dev, or with Python's nvidia-nccl wheel; the library is opened at
# run time, too. Without the header the NCCL link is left out of the build.
set(TERRACE_HAVE_NCCL OFF)
if(TERRACE_HAVE_CUDA)
  file(GLOB TERRACE_NCCL_WHEELS ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/nccl/include)
  find_path(TERRACE_NCCL_INCLUDE nccl.h HINTS ${TERRACE_CUDA_INCLUDE} ${TERRACE_NCCL_WHEELS})
  if(TERRACE_NCCL_INCLUDE)
    set(TERRACE_HAVE_NCCL ON)
  else()
    message(STATUS "No nccl.h (give its folder as TERRACE_NCCL_INCLUDE): built without the NCCL link")
  endif()
endif()
add_library(terrace_cuda_headers INTERFACE)
if(TERRACE_HAVE_CUDA)
  target_include_directories(terrace_cuda_headers SYSTEM INTERFACE ${TERRACE_CUDA_INCLUDE})
  target_compile_definitions(terrace_cuda_headers INTERFACE TERRACE_HAVE_CUDA=1)
endif()

# terrace_kernels(OUT SOURCE DEPENDS...): compiles a .cu file to machine code for all architectures and gives the
# path of the fat binary in OUT.
function(terrace_kernels out source)
  set(target ${CMAKE_CURRENT_BINARY_DIR}/${source}.fatbin)
  set(codes)
  foreach(architecture ${TERRACE_CUDA_ARCHITECTURES})
    list(APPEND codes -gencode arch=compute_${architecture},code=sm_${architecture})
    set(last ${architecture})
  endforeach()
  list(APPEND codes -gencode arch=compute_${last},code=compute_${last})
  add_custom_command(OUTPUT ${target}
    COMMAND ${TERRACE_NVCC} -fatbin -std=c++20 -O3 -Werror all-warnings ${codes} -I${CMAKE_SOURCE_DIR}/src
      -o ${target} ${CMAKE_CURRENT_SOURCE_DIR}/${source}
    DEPENDS ${source} ${ARGN}
    COMMENT "Compiling kernels ${source}" VERBATIM)
  set(${out} ${target} PARENT_SCOPE)
endfunction()
