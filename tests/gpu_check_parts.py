"""What the tools that the GPU check runs print."""

NCU = """==PROF== Connected to process 12
branch_conv_kernel: launch 3
==PROF== Profiling "branch_conv_kernel" - 0: 0%....50%....100% - 3 passes
==PROF== Disconnected from process 12
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",\
"Device","CC","dram__bytes_read.sum","gpu__time_duration.sum","launch__registers_per_thread"
"","","","","","","","","","","","Mbyte","us","register/thread"
"0","12","python3.12","127.0.0.1","branch_conv_kernel","1","7","(128, 1, 1)","(1024, 4, 1)","0","9.0",\
"17.30","41.50","96"
"1","12","python3.12","127.0.0.1","moments_kernel","1","7","(128, 1, 1)","(4, 1, 1)","0","9.0",\
"2.10","12.10","40"
"""

SANITIZER = """
import sys
print("========= COMPUTE-SANITIZER")
print("DONE")
if "racecheck" in sys.argv:
    print("========= RACECHECK SUMMARY: ERRORS hazards displayed (ERRORS errors, 0 warnings)")
else:
    print("========= ERROR SUMMARY: ERRORS errors")
"""
