// What calls itself NCCL 2.30.7 and has nothing else.

extern "C" int ncclGetVersion(int *version) {
    *version = 23007;
    return 0;
}
