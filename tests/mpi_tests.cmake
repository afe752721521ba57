# Tests that run on 8 and 16 ranks, whatever the number of cores: ranks that wait yield to those that work.
# Shared memory lies in /tmp and is copied twice, as containers may have a small /dev/shm and may forbid ranks to read each
# other's memory.
if(TARGET executor_mpi_tests)
  find_program(MPIRUN mpirun REQUIRED)
  function(add_mpi_test name ranks filter)
    add_test(NAME ${name}
      COMMAND ${MPIRUN} --oversubscribe --bind-to none --mca pml ob1 --mca btl self,vader
              --mca btl_vader_single_copy_mechanism none --mca btl_vader_backing_directory /tmp
              -n ${ranks} $<TARGET_FILE:executor_mpi_tests> --gtest_filter=${filter})
    # No look for leaks here: to tell Open MPI's by name takes stacks unwound in full, too slow for this many ranks. The
    # tests of the command look, with ranks.
    set_tests_properties(${name} PROPERTIES TIMEOUT 1200 PROCESSORS 2 ENVIRONMENT
      "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1;OMPI_MCA_mpi_yield_when_idle=1;ASAN_OPTIONS=detect_leaks=0")
  endfunction()
  add_mpi_test(executor_mpi 8 -Equalities.*:Golden.*:Families/*:Grid/*)
  # Golden vectors, one test a file; files that MESHWRIGHT_CASES has besides when the tests are run are in the last one.
  add_mpi_test(golden.jaxformer 8 Golden.*)
  file(GLOB golden_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/data/hf_golden/*.json)
  set(golden_tests golden.jaxformer golden.others)
  set(others "Families/*:-")
  foreach(file ${golden_files})
    get_filename_component(family ${file} NAME_WE)
    add_mpi_test(golden.${family} 8 Families/*/${family})
    list(APPEND golden_tests golden.${family})
    string(APPEND others ":Families/*/${family}")
  endforeach()
  add_mpi_test(golden.others 8 ${others})
  add_mpi_test(executor_mpi.equalities 16 Equalities.*)
  # Every family on the plans of family_grid.h.
  add_mpi_test(executor_mpi.mesh_invariance_of_families 8 Grid/MeshInvarianceOfFamilies.*)
  add_mpi_test(executor_mpi.equalities_of_families 8 Grid/EqualitiesOfFamilies.*)
  # With sanitizers these take too long for every commit, `ctest --preset dev` leaves them out by their label.
  set_tests_properties(executor_mpi executor_mpi.equalities executor_mpi.mesh_invariance_of_families
    executor_mpi.equalities_of_families ${golden_tests} PROPERTIES LABELS many_ranks)
  if(MESHWRIGHT_SANITIZE)
    add_mpi_test(executor_mpi.messages 4 Collectives*:PointToPoint*:ByteCounter*:Rank0First*)
  endif()
endif()
