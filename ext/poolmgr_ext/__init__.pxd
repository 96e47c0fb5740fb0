# Makes `from poolmgr_ext.sockdiag cimport ...` resolve.
