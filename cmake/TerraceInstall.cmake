# Where `cmake --install` puts things. Targets are declared by their folders; a target that a build leaves
# out (TERRACE_SERVER=OFF) is left out here, too. libterrace installs itself (src/api/client). Checked by
# tests/packaging.
set(TERRACE_DATA_DIR ${CMAKE_INSTALL_DATADIR}/terrace)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(TERRACE_ETC_DIR /etc/terrace)
  set(TERRACE_ETC_FULL_DIR /etc/terrace)
else()
  set(TERRACE_ETC_DIR ${CMAKE_INSTALL_SYSCONFDIR}/terrace)
  set(TERRACE_ETC_FULL_DIR ${CMAKE_INSTALL_FULL_SYSCONFDIR}/terrace)
endif()

foreach(program terraced terracectl)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()
if(TERRACE_SERVER)
  install(FILES packaging/terraced.yaml DESTINATION ${TERRACE_ETC_DIR})
  configure_file(packaging/terraced.service.in terraced.service @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/terraced.service DESTINATION lib/systemd/system)
  install(FILES packaging/terrace.sysusers DESTINATION lib/sysusers.d RENAME terrace.conf)
  install(DIRECTORY src/api/proto/terrace DESTINATION ${TERRACE_DATA_DIR}/proto FILES_MATCHING PATTERN "*.proto")
endif()
install(DIRECTORY plugins/vllm/terrace_vllm DESTINATION ${TERRACE_DATA_DIR}/python
  FILES_MATCHING PATTERN "*.py" PATTERN "__pycache__" EXCLUDE)
install(FILES README.md ARCHITECTURE.md CHANGELOG.md LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md" PATTERN "decisions" EXCLUDE)
