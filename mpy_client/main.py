import cm_start

cm_start.start()
