from cm import link

link.start()
